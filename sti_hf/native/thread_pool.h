// Threads that stay, for work of tens of microseconds.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <mutex>

namespace sti {

// Any number of callers may use a pool at once. A caller works on its own tasks too, so a call never waits for a
// thread to wake up: threads that come late find less to do, or nothing.
class ThreadPool {
public:
    // The process's pool for computing; made on first use, and anew in a forked child.
    static ThreadPool& compute();

    // Calls task(0) .. task(count - 1), each once, on up to `threads` threads. Rethrows the first exception.
    void run(size_t count, int threads, const std::function<void(size_t)>& task);

private:
    struct Job;
    void work();
    void add_workers(size_t wanted);

    std::mutex mutex_;
    std::condition_variable wake_;
    std::deque<Job*> tickets_;  // one for each further thread that may help with a job
    size_t workers_ = 0;
};

}  // namespace sti
