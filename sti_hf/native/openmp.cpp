#include "openmp.h"

#include <dlfcn.h>
#include <pthread.h>

#include <atomic>
#include <exception>
#include <mutex>

namespace sti {
namespace {

std::atomic<bool> forked{false};
const int fork_handler = pthread_atfork(nullptr, nullptr, [] { forked = true; });

template <class Function>
Function* loaded(const char* name) {
    return reinterpret_cast<Function*>(dlsym(RTLD_DEFAULT, name));
}

// Looked up, not linked: a second runtime in the process would have threads of its own, which compete with PyTorch's.
// The runtimes of GCC, LLVM and Intel all have these three.
struct Runtime {
    // What GCC makes of `#pragma omp parallel`.
    void (*parallel)(void (*work)(void*), void* data, unsigned threads, unsigned flags) =
        loaded<void(void (*)(void*), void*, unsigned, unsigned)>("GOMP_parallel");
    int (*thread)() = loaded<int()>("omp_get_thread_num");
    int (*team)() = loaded<int()>("omp_get_num_threads");

    static const Runtime& get() {
        static const Runtime runtime;
        return runtime;
    }
};

struct Job {
    size_t count;
    const std::function<void(size_t)>& task;
    std::mutex error_mutex{};
    std::exception_ptr error{};
};

void run_share(void* data) {
    auto* job = static_cast<Job*>(data);
    const size_t thread = Runtime::get().thread(), team = Runtime::get().team();
    try {
        for (size_t index = job->count * thread / team; index < job->count * (thread + 1) / team; ++index)
            job->task(index);
    } catch (...) {
        std::lock_guard<std::mutex> lock(job->error_mutex);
        if (!job->error) job->error = std::current_exception();
    }
}

}  // namespace

bool run_on_openmp(size_t count, int threads, const std::function<void(size_t)>& task) {
    const Runtime& runtime = Runtime::get();
    if (forked || !runtime.parallel || !runtime.thread || !runtime.team) return false;
    Job job{count, task};
    runtime.parallel(run_share, &job, static_cast<unsigned>(threads), 0);
    if (job.error) std::rethrow_exception(job.error);
    return true;
}

}  // namespace sti
