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
#include <string>
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

// `threads` reads at most are under way at once; they are taken in order, each only when the staging memory it needs
// has been released. All methods may be called from any thread. A forked child must make a streamer of its own. When
// nothing has been started or released for a while, memory that the process has freed goes back to the system.
class Streamer {
public:
    // Throws std::system_error where a file cannot be opened. `rate_limit` is in bytes per second, 0 for none.
    Streamer(const std::vector<std::string>& paths, Buffers buffers, bool direct, int threads, double rate_limit);
    ~Streamer();  // stops reading, joins the threads

    // Starts reading. Throws std::invalid_argument where a row makes no sense, std::runtime_error while a run goes on.
    void start(const RequestRow* requests, size_t request_count, const PieceRow* pieces, size_t piece_count);
    // When each request of this run must have begun at the latest, in seconds of the monotonic clock; infinity, as
    // they start, for no limit. One that is late when its turn comes is given up, never read, and with it those of its
    // group that follow it. Throws std::invalid_argument unless `count` is that of the requests.
    void set_latest(const double* latest, size_t count);
    // Whether all requests of the group are read and checked, or given up, after waiting for it at most `timeout`.
    // Throws StreamError where one of them or of an earlier group failed, Cancelled after `cancel`.
    bool wait(int64_t group, std::chrono::milliseconds timeout);
    // Whether `wait` would return or throw at once.
    bool ready(int64_t group);
    // The staging memory of this group may be written again.
    void release(int64_t group);
    // Ends the run. When it returns, nothing writes to the buffers.
    void cancel();
    // `cancel`, and the threads end. The streamer cannot be started again.
    void close();

    std::vector<Timing> timings();
    uint64_t bytes_read() const { return bytes_read_; }
    std::vector<bool> direct();
    pid_t process() const { return process_; }

private:
    struct Part;

    void check_process() const;
    std::unique_lock<std::mutex> lock();
    bool settled(int64_t group) const;
    bool has_work() const;
    void wait_for_work(std::unique_lock<std::mutex>& guard);
    bool give_up_late();
    Part take_part();
    void work();
    void read_part(const Part& part);
    void check_in_order(std::unique_lock<std::mutex>& guard);
    void finish(Request& request);

    const pid_t process_;
    const Buffers buffers_;
    RateLimit rate_limit_;
    const int max_reads_;
    std::vector<std::shared_ptr<File>> files_;
    std::vector<std::thread> threads_;

    std::mutex mutex_;                 // of everything below
    std::condition_variable work_;     // for the reading threads
    std::condition_variable changed_;  // for the callers
    bool cancelled_ = false;
    bool closed_ = false;
    uint64_t run_ = 0;  // how many have been started
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
    std::map<int64_t, size_t> unread_;       // group -> its unfinished requests
    std::map<int64_t, std::string> errors_;  // group -> its first
    int64_t released_ = 0;
    std::set<int64_t> released_early_;
    std::atomic<uint64_t> bytes_read_{0};
};

}  // namespace sti
