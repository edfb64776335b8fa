#include "thread_pool.h"

#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <system_error>
#include <thread>

namespace sti {
namespace {

constexpr size_t MAX_WORKERS = 63;

// A pool is never destroyed: its threads may sleep in it until the process ends.
struct PoolSlot {
    std::atomic<ThreadPool*> pool{nullptr};

    ThreadPool& get() {
        ThreadPool* current = pool.load(std::memory_order_acquire);
        if (current) return *current;
        auto* fresh = new ThreadPool;
        if (pool.compare_exchange_strong(current, fresh)) return *fresh;
        delete fresh;
        return *current;
    }
};

PoolSlot compute_slot;

// A forked child has none of its parent's threads, and may have a copy of a locked mutex: it starts afresh.
void forget_pool() { compute_slot.pool.store(nullptr); }

const int fork_handler = pthread_atfork(nullptr, nullptr, forget_pool);

}  // namespace

struct ThreadPool::Job {
    Job(const std::function<void(size_t)>& task, size_t count) : task(task), count(count) {}

    const std::function<void(size_t)>& task;
    const size_t count;
    std::atomic<size_t> next{0};
    size_t helpers = 0;  // threads of the pool at work on this job; under the pool's mutex
    std::condition_variable left;
    std::mutex error_mutex;
    std::exception_ptr error;

    void work() {
        for (size_t index = next++; index < count; index = next++) {
            try {
                task(index);
            } catch (...) {
                std::lock_guard<std::mutex> lock(error_mutex);
                if (!error) error = std::current_exception();
                next = count;
            }
        }
    }
};

ThreadPool& ThreadPool::compute() { return compute_slot.get(); }

void ThreadPool::run(size_t count, int threads, const std::function<void(size_t)>& task) {
    Job job(task, count);
    const size_t helpers = std::min({count, static_cast<size_t>(std::max(threads, 1)), MAX_WORKERS + 1});
    if (helpers > 1) {
        std::lock_guard<std::mutex> lock(mutex_);
        add_workers(helpers - 1);
        tickets_.insert(tickets_.end(), helpers - 1, &job);
        for (size_t i = 1; i < helpers; ++i) wake_.notify_one();
    }
    job.work();
    if (helpers > 1) {
        std::unique_lock<std::mutex> lock(mutex_);
        tickets_.erase(std::remove(tickets_.begin(), tickets_.end(), &job), tickets_.end());
        job.left.wait(lock, [&] { return job.helpers == 0; });
    }
    if (job.error) std::rethrow_exception(job.error);
}

void ThreadPool::work() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
        wake_.wait(lock, [&] { return !tickets_.empty(); });
        Job* job = tickets_.front();
        tickets_.pop_front();
        ++job->helpers;
        lock.unlock();
        job->work();
        lock.lock();
        if (--job->helpers == 0) job->left.notify_one();
    }
}

void ThreadPool::add_workers(size_t wanted) {
    try {
        for (; workers_ < wanted; ++workers_) std::thread(&ThreadPool::work, this).detach();
    } catch (const std::system_error&) {
        // The system gives no more threads: those there are, the caller among them, do the work.
    }
}

}  // namespace sti
