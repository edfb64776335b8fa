// Reads a plan's pieces ahead of compute, in order, into buffers of the caller.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

#include "buffers.h"
#include "file.h"
#include "rate_limit.h"
#include "request.h"

namespace sti {

struct Cancelled : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Who shares the buffers of a run keeps them alive.
using RunBuffers = std::shared_ptr<const Buffers>;

// `threads` reads at most are under way at once; they are taken in order, each only when the staging memory it needs
// has been released. All methods may be called from any thread. A forked child must make a streamer of its own, for
// which it may use the same files. When nothing has been started or released for a while, memory that the process has
// freed goes back to the system.
class Streamer {
public:
    // `files` must outlive it; `rate_limit` is in bytes per second, 0 for none. Throws std::system_error where a thread
    // cannot be made.
    Streamer(const Files& files, int threads, double rate_limit);
    ~Streamer();  // stops reading, joins the threads

    // Starts reading into `buffers`, which are let go at the next start or close. Throws std::invalid_argument where a
    // record makes no sense, std::runtime_error while a run goes on.
    void start(RunBuffers buffers, const RequestRow* requests, size_t request_count, const PieceRow* pieces,
               size_t piece_count);
    // When each request of this run must have begun at the latest, in seconds of the monotonic clock; infinity, as
    // they start, for no limit. One that is late when its turn comes is given up, never read, and with it those of its
    // step that follow it. Throws std::invalid_argument unless `count` is that of the requests.
    void set_latest(const double* latest, size_t count);
    // Whether all requests of the step are read and checked, or given up, after waiting for it at most `timeout`.
    // Throws StreamError where one of them or of an earlier step failed, Cancelled after `cancel`.
    bool wait(int64_t step, std::chrono::milliseconds timeout);
    // The staging memory of this step may be written again.
    void release(int64_t step);
    // Ends the run. When it returns, nothing writes to the buffers.
    void cancel();
    // `cancel`, and the threads end. The streamer cannot be started again.
    void close();

    // Of each request of the last run, also after `cancel`.
    std::vector<Timing> timings();
    std::vector<Outcome> outcomes();
    uint64_t bytes_read() const { return bytes_read_; }
    pid_t process() const { return process_; }

private:
    struct Part;

    void make_threads(int count);
    void check_process() const;
    std::unique_lock<std::mutex> lock();
    bool failed(int64_t step) const;
    bool settled(int64_t step) const;
    bool has_work() const;
    void wait_for_work(std::unique_lock<std::mutex>& guard);
    bool give_up_late();
    Part take_part();
    void work();
    void read_part(const Part& part);
    void check_in_order(std::unique_lock<std::mutex>& guard);
    void finish(Request& request);

    const pid_t process_;
    const Files& files_;
    RateLimit rate_limit_;
    const int max_reads_;

    std::mutex mutex_;                 // of everything below
    std::condition_variable work_;     // for the reading threads
    std::condition_variable changed_;  // for the callers
    std::vector<std::thread> threads_;
    bool cancelled_ = false;
    bool closed_ = false;
    uint64_t run_ = 0;  // how many have been started
    RunBuffers buffers_;
    std::vector<Request> requests_;
    size_t next_request_ = 0;  // to be read
    size_t next_offset_ = 0;   // inside it
    size_t next_check_ = 0;    // request to be checked
    size_t unfinished_ = 0;    // requests not yet read and checked, nor given up
    int reads_ = 0;            // parts being read
    size_t in_flight_ = 0;     // parts being read or checked
    bool checking_ = false;    // a thread is at it
    bool in_use_ = false;      // since memory was last given back
    std::chrono::steady_clock::time_point last_use_{};
    std::map<int64_t, size_t> unread_;  // step -> its unfinished requests
    const Request* failure_ = nullptr;  // the first of the earliest step that has one
    int64_t released_ = 0;
    std::set<int64_t> released_early_;
    std::atomic<uint64_t> bytes_read_{0};
};

}  // namespace sti
