// emulation.h: runs the CUDA kernels of this folder on the CPU, so that they are tested where there is no GPU.
//
//   g++ -std=c++17 -O2 -march=x86-64-v3 -fno-strict-aliasing -Wno-psabi -x c++ -include emulation/emulation.h kernel.cu
//
// One fiber a CUDA thread, one block at a time on each worker. A fiber runs until it must wait (barrier, shuffle,
// mbarrier), then hands over. Asynchronous copies complete as late or as early as the program allows, and the order of
// the fibers is a parameter: a kernel that is right under every order has its waits where it needs them. Dynamic shared
// memory and STATIC_SMEM hold NaN when a block starts.
// Not modelled: speed, bank conflicts, memory ordering between blocks, fences (a no-op), the last ulp of the maths
// functions. Objects of several .cu files are linked whole: each registers its kernels before main.
#pragma once

#include "fibers.h"

#include "builtins.h"
#include "halves.h"
#include "launch.h"
