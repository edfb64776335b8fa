#include "openmp.h"

#include <dlfcn.h>
#include <pthread.h>

#include <atomic>

namespace sti {
namespace {

// What GCC makes of `#pragma omp parallel`: the one entry that the runtimes of GCC, LLVM and Intel share. It is looked
// up, not linked: a second runtime in the process would have threads of its own, which compete with PyTorch's.
using Parallel = void (*)(void (*work)(void*), void* data, unsigned threads, unsigned flags);

std::atomic<bool> forked{false};
const int fork_handler = pthread_atfork(nullptr, nullptr, [] { forked = true; });

}  // namespace

bool run_on_openmp(void (*work)(void*), void* data, int threads) {
    static const auto parallel = reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
    if (!parallel || forked) return false;
    parallel(work, data, static_cast<unsigned>(threads), 0);
    return true;
}

}  // namespace sti
