// launch.h: kernels by name, called as the driver calls them: an array of pointers to the arguments. Device pointers
// are host pointers.
#pragma once
#include "fibers.h"

namespace emu {

struct Kernel {
    std::function<void(void** args)> call;
    std::vector<unsigned> argument_bytes;
};
inline std::map<std::string, Kernel>& kernels() {
    static std::map<std::string, Kernel> all;
    return all;
}
template <class... A, size_t... I>
std::function<void(void**)> unpack(void (*kernel)(A...), std::index_sequence<I...>) {
    return [kernel](void** args) { kernel(*(std::remove_reference_t<A>*)args[I]...); };
}
template <class... A>
struct Register {
    Register(const char* name, void (*kernel)(A...)) {
        if (!kernels().insert({name, {unpack(kernel, std::index_sequence_for<A...>{}), {(unsigned)sizeof(A)...}}}).second) {
            fprintf(stderr, "two kernels are named %s\n", name);
            abort();
        }
    }
};
template <class... A>
Register(const char*, void (*)(A...)) -> Register<A...>;

inline int env(const char* name, int otherwise) {
    const char* text = getenv(name);
    return text ? atoi(text) : otherwise;
}
inline thread_local int order_of_this_thread = -1, workers_of_this_thread = 0;

}  // namespace emu

#define KERNEL_ENTRY(name) static emu::Register name##_registered(#name, name)

// The order (see run_grid) of launches that this thread makes from now on; negative: EMU_ORDER's, or 0 without it.
extern "C" __attribute__((weak)) void emu_set_order(int order) { emu::order_of_this_thread = order; }

// Host threads that run the blocks of a launch that this thread makes; 0: EMU_WORKERS', or one a core.
extern "C" __attribute__((weak)) void emu_set_workers(int workers) { emu::workers_of_this_thread = workers; }

// Number of arguments of a kernel, and the bytes of the first `capacity` of them; -1 where there is no such kernel.
extern "C" __attribute__((weak)) int emu_kernel_arguments(const char* kernel, unsigned* bytes, int capacity) {
    const auto found = emu::kernels().find(kernel);
    if (found == emu::kernels().end()) return -1;
    const auto& all = found->second.argument_bytes;
    for (int i = 0; i < capacity && i < (int)all.size(); ++i) bytes[i] = all[i];
    return (int)all.size();
}

// 0, or 1 with the reason in `message`.
extern "C" __attribute__((weak)) int emu_launch(const char* kernel, const unsigned grid[3], const unsigned block[3], unsigned dyn_smem,
                                                void** args, char* message, size_t message_len) {
    try {
        const auto found = emu::kernels().find(kernel);
        if (found == emu::kernels().end()) throw std::runtime_error("no such kernel");
        const uint64_t threads = (uint64_t)block[0] * block[1] * block[2];
        const bool empty = !threads || !grid[0] || !grid[1] || !grid[2];
        if (empty || threads > emu::kMaxThreads || grid[0] > 0x7fffffff || grid[1] > 65535 || grid[2] > 65535 || block[2] > 64 ||
            dyn_smem > emu::kDynSmem)
            throw std::runtime_error("a launch that no GPU takes: grid, block or shared memory out of range");
        const auto& call = found->second.call;
        const int order = emu::order_of_this_thread >= 0 ? emu::order_of_this_thread : emu::env("EMU_ORDER", 0);
        const int cores = (int)std::thread::hardware_concurrency();
        const int workers = emu::workers_of_this_thread > 0 ? emu::workers_of_this_thread : emu::env("EMU_WORKERS", cores);
        emu::run_grid({grid[0], grid[1], grid[2]}, {block[0], block[1], block[2]}, dyn_smem, [&] { call(args); }, order, workers);
        return 0;
    } catch (const std::exception& error) {
        snprintf(message, message_len, "%s: %s", kernel, error.what());
        return 1;
    }
}
