// fibers.h: threads of a block as fibers, their scheduler, barriers, warp-wide instructions and asynchronous work.
#pragma once
#include <algorithm>
#include <atomic>
#include <cassert>
#include <cfloat>
#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <stdexcept>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include <sys/mman.h>
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace emu {

constexpr int kMaxThreads = 1024, kMaxWarps = 32, kBarriers = 16;
constexpr size_t kStack = 256 << 10;
constexpr size_t kDynSmem = 227 << 10;    // the most that a block of sm_90 gets
constexpr size_t kStaticSmem = 48 << 10;  // the most that may be declared statically
constexpr size_t kCanary = 1024;          // poison after dynamic shared memory that must survive the block

using AsyncOp = std::function<void()>;

struct Fiber {
    void* sp;
    uint3 tid;
    uint32_t linear, warp, lane;
    const char* waits_for;
    std::vector<AsyncOp> async_open;                 // cp.async and wgmma issued and not yet committed
    std::vector<std::vector<AsyncOp>> async_groups;  // committed groups, oldest first
};

// A warp-wide instruction that some lanes have reached: what each gave lies in its own frame, which is suspended.
struct Rendezvous {
    uint32_t arrived = 0, mask = 0;
    const char* op = nullptr;
    void* lane[32];
};
struct Warp {
    uint32_t alive, runnable;
    uint32_t used;        // of `open`
    Rendezvous open[32];  // one a mask; a lane waits in one at most
};
struct Barrier {
    uint32_t arrived = 0;
    uint32_t waiting[kMaxWarps] = {};
};
struct StaticSmem {
    const void* site;
    size_t offset;
};

// One block at a time runs here.
struct Worker {
    std::vector<Fiber> fibers{kMaxThreads};
    std::vector<Warp> warps{kMaxWarps};
    Barrier bar[kBarriers];
    uint32_t mbar_waiting[kMaxWarps];
    std::vector<AsyncOp> in_flight;  // bulk (TMA) copies: complete when nothing else can run
    unsigned char *stacks, *dyn, *fixed;
    size_t dyn_bytes = 0, fixed_used = 0;
    std::vector<StaticSmem> static_smem;
    void* main_sp = nullptr;
    Fiber* cur = nullptr;
    uint32_t n_threads, n_warps, alive;
    dim3 grid, block;
    uint3 bid;
    std::function<void()>* body;
    std::string error;
    uint64_t rng, haste;
    int order;

    static unsigned char* map(size_t bytes) {
        return (unsigned char*)mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    }
    Worker() : stacks(map(kStack * kMaxThreads)), dyn(map(kDynSmem + kCanary)), fixed(map(kStaticSmem)) {}
    ~Worker() {
        munmap(stacks, kStack * kMaxThreads);
        munmap(dyn, kDynSmem + kCanary);
        munmap(fixed, kStaticSmem);
    }
};
inline thread_local Worker* W = nullptr;

// Saves the callee-saved registers and the stack pointer of one context and restores another's.
extern "C" void emu_switch(void** save_sp, void* load_sp);
asm(R"(
    .text
    .weak emu_switch
    .type emu_switch, @function
emu_switch:
    pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
    ret
)");

inline void switch_from(void** save, Fiber* to) {
    W->cur = to;
    emu_switch(save, to->sp);
}
[[noreturn]] inline void to_main() {
    void* dead;
    emu_switch(&dead, W->main_sp);
    __builtin_unreachable();
}

// Ends the block; the launch reports the text.
[[noreturn]] inline void fail(const char* format, ...) {
    char text[512], where[128];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    const uint3 b = W->bid, t = W->cur->tid;
    snprintf(where, sizeof where, "block (%u,%u,%u) thread (%u,%u,%u): ", b.x, b.y, b.z, t.x, t.y, t.z);
    W->error = std::string(where) + text;
    to_main();
}

// ---------------------------------------------------------------------------------------------------
// the scheduler

inline uint64_t next_random() {
    uint64_t& s = W->rng;
    s ^= s << 13;
    s ^= s >> 7;
    s ^= s << 17;
    return s;
}

inline int pick_bit(uint32_t set, uint32_t after) {
    if (W->order == 1) return 31 - __builtin_clz(set);
    if (W->order > 1) {
        for (int skip = next_random() % __builtin_popcount(set); skip; --skip) set &= set - 1;
        return __builtin_ctz(set);
    }
    const uint32_t above = after < 31 ? set & (~0u << (after + 1)) : 0;
    return __builtin_ctz(above ? above : set);
}

// The next fiber to run: another lane of this warp if there is one, else another warp's.
inline Fiber* pick() {
    Worker& w = *W;
    for (;;) {
        const uint32_t here = w.cur ? w.cur->warp : 0;
        uint32_t from = here;
        if (w.order > 1 && next_random() % w.haste == 0) from = next_random() % w.n_warps;  // mostly one warp runs far ahead
        for (uint32_t k = 0; k < w.n_warps; ++k) {
            const uint32_t i = w.order == 1 ? (from + w.n_warps - k) % w.n_warps : (from + k) % w.n_warps;
            if (const uint32_t set = w.warps[i].runnable)
                return &w.fibers[i * 32 + pick_bit(set, w.cur && i == here ? w.cur->lane : 31)];
        }
        if (w.in_flight.empty()) return nullptr;
        auto which = w.in_flight.begin() + (w.order > 1 ? next_random() % w.in_flight.size() : 0);
        const AsyncOp copy = std::move(*which);
        w.in_flight.erase(which);
        copy();  // may wake the waiters of an mbarrier
    }
}

inline void suspend(const char* why) {
    Fiber* me = W->cur;
    me->waits_for = why;
    Fiber* next = pick();
    if (!next) {
        char list[256] = "";
        for (uint32_t i = 0, shown = 0, at = 0; i < W->n_threads && shown < 4; ++i)
            if (W->warps[i / 32].alive >> (i % 32) & 1) {
                at += snprintf(list + at, sizeof list - at, " thread %u at %s;", i, W->fibers[i].waits_for);
                if (at >= sizeof list) break;
                ++shown;
            }
        fail("deadlock, %u threads left:%s", W->alive, list);
    }
    if (next != me) switch_from(&me->sp, next);
}

inline void sleep_until_woken(const char* why) {
    W->warps[W->cur->warp].runnable &= ~(1u << W->cur->lane);
    suspend(why);
}

inline void wake(uint32_t* waiting) {
    for (uint32_t i = 0; i < W->n_warps; ++i) {
        W->warps[i].runnable |= waiting[i];
        waiting[i] = 0;
    }
}

// ---------------------------------------------------------------------------------------------------
// barriers and warp-wide instructions

// Barrier `id` of `count` threads; count 0 is every thread that has not exited (__syncthreads).
inline void bar_check(int id, uint32_t count) {
    Barrier& b = W->bar[id];
    if (b.arrived && b.arrived >= (count ? count : W->alive)) {
        b.arrived = 0;
        wake(b.waiting);
    }
}
inline void bar_arrive(int id, uint32_t count) {
    W->bar[id].arrived++;
    bar_check(id, count);
}
inline void bar_sync(int id, uint32_t count) {
    Fiber* me = W->cur;
    Barrier& b = W->bar[id];
    b.waiting[me->warp] |= 1u << me->lane;
    W->warps[me->warp].runnable &= ~(1u << me->lane);
    b.arrived++;
    bar_check(id, count);
    if (!(W->warps[me->warp].runnable >> me->lane & 1)) suspend(id ? "a named barrier" : "__syncthreads");
}

// Every lane of `mask` gives `in`. The last to arrive runs finish(at) once for all, at(lane) being what that lane gave;
// pointers into the lanes' own variables may be given. Nothing in `finish` may depend on which lane runs it.
template <class T, class F>
void warp_instruction(uint32_t mask, const char* op, T in, F finish) {
    Fiber* me = W->cur;
    Warp& warp = W->warps[me->warp];
    if (!(mask >> me->lane & 1)) fail("%s: mask %08x leaves out the caller, lane %u", op, mask, me->lane);
    if (mask & ~warp.alive) fail("%s: mask %08x names lanes that exited (alive %08x)", op, mask, warp.alive);
    Rendezvous* found = nullptr;
    for (Rendezvous* one = warp.open; one < warp.open + warp.used && !(found && found->arrived); ++one)
        if (one->arrived ? one->mask == mask : !found) found = one;
    if (!found) found = &warp.open[warp.used++];
    Rendezvous& r = *found;
    if (!r.arrived) r.mask = mask, r.op = op;
    if (strcmp(r.op, op)) fail("lanes %08x disagree: some are at %s, this one at %s", mask, r.op, op);
    r.lane[me->lane] = &in;
    r.arrived |= 1u << me->lane;
    if (r.arrived == mask) {
        finish([&r](int lane) -> T& { return *(T*)r.lane[lane]; });
        r.arrived = 0;
        warp.runnable |= mask;
    } else {
        sleep_until_woken(op);
    }
}

// Every lane of `mask` gives `in`; each gets its own f(at). Shuffles and votes are this.
template <class T, class F>
auto collective(uint32_t mask, const char* op, const T& in, F f) {
    T result{};
    struct Call {
        T in;
        F* f;
        T* result;
    };
    warp_instruction(mask, op, Call{in, &f, &result}, [mask](auto at) {
        for (uint32_t rest = mask; rest; rest &= rest - 1) {
            Call& call = at(__builtin_ctz(rest));
            *call.result = (*call.f)([&](int lane) -> const T& { return at(lane).in; });
        }
    });
    return result;
}

// ---------------------------------------------------------------------------------------------------
// asynchronous work

// It may finish at once or as late as its wait: order 0 takes the latest, 1 the earliest, others toss a coin.
inline bool finish_now() { return W->order == 1 || (W->order > 1 && next_random() & 1); }

// A point where other threads may overtake this one; without it a kernel would be too well behaved.
inline void overtaken() {
    if (W->order <= 1 || next_random() % 4) return;
    Fiber* me = W->cur;
    Fiber* next = pick();
    if (!next || next == me) return;
    me->waits_for = "its turn";
    switch_from(&me->sp, next);
}

// An `ordered` one (wgmma) does not finish before those that its thread issued earlier.
inline void async_op(bool ordered, AsyncOp op) {
    Fiber* me = W->cur;
    const bool after_others = ordered && !(me->async_open.empty() && me->async_groups.empty());
    if (!after_others && finish_now())
        op();
    else
        me->async_open.push_back(std::move(op));
}
inline void bulk_op(AsyncOp op) {
    if (finish_now())
        op();
    else
        W->in_flight.push_back(std::move(op));
}
inline void commit_group() {
    overtaken();
    Fiber* me = W->cur;
    me->async_groups.push_back(std::move(me->async_open));
    me->async_open.clear();
}
inline void wait_group(size_t leave) {
    overtaken();
    auto& groups = W->cur->async_groups;
    while (groups.size() > leave) {
        for (auto& op : groups.front()) op();
        groups.erase(groups.begin());
    }
}

// ---------------------------------------------------------------------------------------------------
// blocks and grids

// The block's variable that is declared at `site`.
template <class T>
T& static_smem(const void* site) {
    Worker& w = *W;
    for (const StaticSmem& known : w.static_smem)
        if (known.site == site) return *(T*)(w.fixed + known.offset);
    const size_t offset = (w.fixed_used + 127) / 128 * 128;
    if (offset + sizeof(T) > kStaticSmem) fail("more than %zu bytes of static shared memory", kStaticSmem);
    w.static_smem.push_back({site, offset});
    w.fixed_used = offset + sizeof(T);
    memset(w.fixed + offset, 0xff, sizeof(T));
    return *(T*)(w.fixed + offset);
}

inline void fiber_main() {
    (*W->body)();
    Fiber* me = W->cur;
    Warp& warp = W->warps[me->warp];
    warp.alive &= ~(1u << me->lane);
    warp.runnable &= ~(1u << me->lane);
    if (--W->alive == 0) {
        while (!W->in_flight.empty()) {
            W->in_flight.back()();
            W->in_flight.pop_back();
        }
        to_main();
    }
    bar_check(0, 0);
    suspend("exit");
    __builtin_unreachable();
}

inline void run_block(Worker& w) {
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(w.stacks, kStack * w.n_threads);  // what the last block's frames left
#endif
    w.alive = w.n_threads;
    w.in_flight.clear();
    w.error.clear();
    w.static_smem.clear();
    w.fixed_used = 0;
    memset(w.dyn, 0xff, w.dyn_bytes + kCanary);  // poison: 0xffff is NaN in half, 0xffffffff in float
    memset(w.mbar_waiting, 0, sizeof w.mbar_waiting);
    for (auto& b : w.bar) b = Barrier{};
    for (uint32_t i = 0; i < w.n_warps; ++i) {
        const uint32_t lanes = std::min(32u, w.n_threads - i * 32);
        w.warps[i].alive = w.warps[i].runnable = lanes == 32 ? ~0u : (1u << lanes) - 1;
        for (auto& r : w.warps[i].open) r.arrived = 0;
        w.warps[i].used = 0;
    }
    for (uint32_t t = 0; t < w.n_threads; ++t) {
        Fiber& f = w.fibers[t];
        f.tid = {t % w.block.x, t / w.block.x % w.block.y, t / (w.block.x * w.block.y)};
        f.linear = t;
        f.warp = t / 32;
        f.lane = t % 32;
        f.waits_for = "start";
        f.async_open.clear();
        f.async_groups.clear();
        // Tops at different offsets in their pages, or all hot frames would share a few cache sets.
        void** top = (void**)(w.stacks + (t + 1) * kStack - t % 61 * 64) - 1;  // the ABI: rsp is 8 mod 16 at entry
        *--top = (void*)fiber_main;                                            // emu_switch returns into it
        for (int r = 0; r < 6; ++r) *--top = nullptr;                          // the six saved registers
        f.sp = top;
    }
    w.cur = nullptr;
    Fiber* first = pick();
    switch_from(&w.main_sp, first);
    w.cur = nullptr;
    for (size_t i = 0; i < kCanary && w.error.empty(); ++i)
        if (w.dyn[w.dyn_bytes + i] != 0xff)
            w.error = "a write " + std::to_string(i) + " bytes past the end of dynamic shared memory";
}

// Workers are kept: making one costs more than a small launch.
struct Pool {
    std::mutex lock;
    std::vector<std::unique_ptr<Worker>> idle;
};
inline Pool& pool() {
    static Pool* pool = new Pool;  // never destroyed: threads may still launch while the process ends
    return *pool;
}
struct Loan {
    std::unique_ptr<Worker> worker;
    Loan() {
        std::lock_guard<std::mutex> guard(pool().lock);
        if (!pool().idle.empty()) {
            worker = std::move(pool().idle.back());
            pool().idle.pop_back();
        } else {
            worker = std::make_unique<Worker>();
        }
        W = worker.get();
    }
    ~Loan() {
        W = nullptr;
        std::lock_guard<std::mutex> guard(pool().lock);
        pool().idle.push_back(std::move(worker));
    }
};

// Runs `body` for every thread of the grid. Order 0: ascending, asynchronous work as late as may be; 1: descending, as
// early as may be; above 1: blocks, threads and asynchronous work at random from that seed, threads overtaking each other.
inline void run_grid(dim3 grid, dim3 block, size_t dyn_bytes, std::function<void()> body, int order, int threads) {
    const uint64_t blocks = (uint64_t)grid.x * grid.y * grid.z;
    uint64_t stride = order > 1 ? (uint64_t)order * 2654435761u % blocks | 1 : 1;  // blocks in the order i * stride mod blocks
    while (std::gcd(stride, blocks) != 1) ++stride;
    std::atomic<uint64_t> next{0};
    std::string error;
    std::atomic<bool> failed{false};
    auto work = [&] {
        Loan loan;
        Worker& w = *loan.worker;
        w.grid = grid;
        w.block = block;
        w.body = &body;
        w.order = order;
        w.dyn_bytes = dyn_bytes;
        w.n_threads = block.x * block.y * block.z;
        w.n_warps = (w.n_threads + 31) / 32;
        for (uint64_t i; (i = next++) < blocks && !failed;) {
            const uint64_t b = order == 1 ? blocks - 1 - i : i * stride % blocks;
            w.bid = {(unsigned)(b % grid.x), (unsigned)(b / grid.x % grid.y), (unsigned)(b / grid.x / grid.y)};
            w.rng = 0x9e3779b97f4a7c15ull * (order + 1) ^ (b + 1);
            w.haste = 4ull << (w.rng >> 60) % 3 * 5;  // some blocks keep the warps abreast and some far apart
            run_block(w);
            if (!w.error.empty() && !failed.exchange(true)) error = w.error;
        }
    };
    if (threads <= 1 || blocks == 1) {
        work();
    } else {
        std::vector<std::thread> others;
        for (uint64_t i = 1; i < std::min<uint64_t>(threads, blocks); ++i) others.emplace_back(work);
        work();
        for (auto& thread : others) thread.join();
    }
    if (failed) throw std::runtime_error(error);
}

}  // namespace emu
