#include "streamer.h"

#include <unistd.h>

#include <algorithm>
#include <system_error>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include "kernels.h"

namespace sti {
namespace {

constexpr std::chrono::milliseconds IDLE{100};  // much longer than the computing of a layer
constexpr size_t PART_BYTES = 2 << 20;  // one read: large enough for the disk, small enough to cancel soon

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// What went wrong in `action`, for the one who waits: on a reading thread, an exception would end the process.
template <class Action>
std::string error_of(const Action& action) {
    try {
        action();
        return {};
    } catch (const std::exception& caught) {
        return caught.what();
    }
}

// What was freed, and the C library keeps for the next allocations, goes back to the system.
void return_freed_memory() {
#if defined(__GLIBC__)
    malloc_trim(0);
#endif
}

}  // namespace

struct Streamer::Part {
    Request* request;
    size_t first;
    size_t length;
};

Streamer::Streamer(const Files& files, int threads, double rate_limit)
    : process_(getpid()), files_(files), rate_limit_(rate_limit), max_reads_(threads) {
    kernels();  // where STI_HF_ISA is wrong, that is said here and not on a reading thread
    try {
        make_threads(threads + 1);  // one more, so that the disk is kept busy while checksums are computed
    } catch (...) {
        close();
        throw;
    }
}

void Streamer::make_threads(int count) {
    threads_.reserve(count);
    try {
        while (threads_.size() < static_cast<size_t>(count)) threads_.emplace_back(&Streamer::work, this);
    } catch (const std::system_error& error) {
        throw std::system_error(error.code(), "a thread that reads cannot be made");
    }
}

Streamer::~Streamer() { close(); }

void Streamer::check_process() const {
    if (getpid() != process_)
        throw std::runtime_error("this streamer belongs to the parent process; after fork use `for_child()`");
}

std::unique_lock<std::mutex> Streamer::lock() {
    check_process();
    return std::unique_lock<std::mutex>(mutex_);
}

void Streamer::start(RunBuffers buffers, const RequestRow* rows, size_t request_count, const PieceRow* piece_rows,
                     size_t piece_count) {
    const auto guard = lock();
    if (closed_) throw std::runtime_error("the streamer is closed");
    if (unfinished_ > 0) throw std::runtime_error("the streamer is still reading; cancel it before a new start");
    auto requests = make_requests(rows, request_count, piece_rows, piece_count, files_, *buffers);
    std::map<int64_t, size_t> unread;
    for (const Request& request : requests) ++unread[request.step];

    ++run_;
    cancelled_ = false;
    buffers_.swap(buffers);  // those of the last run are let go by the caller, without the lock
    requests_.swap(requests);
    unread_.swap(unread);
    failure_ = nullptr;
    next_request_ = next_offset_ = next_check_ = 0;
    unfinished_ = request_count;
    released_ = 0;
    released_early_.clear();
    bytes_read_ = 0;
    last_use_ = std::chrono::steady_clock::now();
    in_use_ = true;
    work_.notify_all();
}

void Streamer::set_latest(const double* latest, size_t count) {
    const auto guard = lock();
    if (count != requests_.size())
        throw std::invalid_argument("there are " + std::to_string(requests_.size()) + " requests, but " +
                                    std::to_string(count) + " latest moments");
    for (size_t i = 0; i < count; ++i) requests_[i].latest = latest[i];
}

bool Streamer::failed(int64_t step) const { return failure_ && failure_->step <= step; }

bool Streamer::settled(int64_t step) const {
    if (cancelled_ || failed(step)) return true;
    const auto found = unread_.find(step);
    return found == unread_.end() || found->second == 0;
}

bool Streamer::wait(int64_t step, std::chrono::milliseconds timeout) {
    auto guard = lock();
    if (run_ == 0) throw std::runtime_error("nothing to wait for: the streamer has not been started");
    if (!changed_.wait_for(guard, timeout, [&] { return settled(step); })) return false;
    if (cancelled_) throw Cancelled("reading was cancelled");
    if (failed(step)) throw StreamError(failure_->error);
    return true;
}

void Streamer::release(int64_t step) {
    const auto guard = lock();
    if (step >= released_) released_early_.insert(step);
    while (released_early_.erase(released_)) ++released_;
    last_use_ = std::chrono::steady_clock::now();
    if (has_work()) work_.notify_all();
}

void Streamer::cancel() {
    auto guard = lock();
    if (unfinished_ > 0) cancelled_ = true;
    next_request_ = requests_.size();
    work_.notify_all();
    changed_.notify_all();
    const uint64_t run = run_;  // someone else may cancel too, and start the next
    changed_.wait(guard, [&] { return run_ != run || in_flight_ == 0; });
    if (run_ == run) unfinished_ = 0;
}

void Streamer::close() {
    {
        const auto guard = lock();
        closed_ = true;
    }
    cancel();
    std::vector<std::thread> threads;
    RunBuffers buffers;
    {
        const auto guard = lock();
        buffers.swap(buffers_);
        threads.swap(threads_);
        work_.notify_all();
    }
    for (std::thread& thread : threads) thread.join();
}

std::vector<Timing> Streamer::timings() {
    const auto guard = lock();
    std::vector<Timing> timings;
    for (const Request& request : requests_) timings.push_back(request.timing);
    return timings;
}

std::vector<Outcome> Streamer::outcomes() {
    const auto guard = lock();
    std::vector<Outcome> outcomes;
    for (const Request& request : requests_) outcomes.push_back(request.outcome);
    return outcomes;
}

bool Streamer::has_work() const {
    return reads_ < max_reads_ && next_request_ < requests_.size() && released_ >= requests_[next_request_].wait_for;
}

// Inferences that follow each other find the memory of the last one; once none has gone on for a while, it is given
// back.
void Streamer::wait_for_work(std::unique_lock<std::mutex>& guard) {
    while (!closed_ && !has_work()) {
        if (!in_use_) {
            work_.wait(guard);
        } else if (work_.wait_until(guard, last_use_ + IDLE) == std::cv_status::timeout && in_use_ &&
                   std::chrono::steady_clock::now() >= last_use_ + IDLE) {
            in_use_ = false;
            guard.unlock();
            return_freed_memory();
            guard.lock();
        }
    }
}

// Nobody is woken when a request becomes late: it matters only once a thread could read it.
bool Streamer::give_up_late() {
    if (next_offset_ > 0 || !(now() > requests_[next_request_].latest)) return false;
    const int64_t step = requests_[next_request_].step;
    for (; next_request_ < requests_.size() && requests_[next_request_].step == step; ++next_request_)
        requests_[next_request_].outcome = Outcome::GIVEN_UP;
    return true;
}

Streamer::Part Streamer::take_part() {
    Request& request = requests_[next_request_];
    const Part part{&request, next_offset_, std::min(PART_BYTES, request.length - next_offset_)};
    if (part.first == 0) request.timing.start = now();
    next_offset_ += part.length;
    if (next_offset_ == request.length) {
        ++next_request_;
        next_offset_ = 0;
    }
    return part;
}

void Streamer::work() {
    std::unique_lock<std::mutex> guard(mutex_);
    for (;;) {
        wait_for_work(guard);
        if (closed_) return;
        ++in_flight_;
        if (give_up_late()) {
            check_in_order(guard);
        } else {
            const Part part = take_part();
            ++reads_;
            guard.unlock();
            read_part(part);
            guard.lock();
        }
        --in_flight_;
        changed_.notify_all();
    }
}

void Streamer::read_part(const Part& part) {
    Request& request = *part.request;
    const auto earliest_end = rate_limit_.reserve(part.length);
    size_t count = 0;
    std::string error = error_of([&] {
        count = request.file->read(request.target + part.first, part.length, request.offset + part.first);
    });
    bytes_read_ += count;

    std::unique_lock<std::mutex> guard(mutex_);
    work_.wait_until(guard, earliest_end, [&] { return cancelled_; });
    --reads_;
    work_.notify_all();
    if (count < part.length) request.available = std::min(request.available, part.first + count);
    if (request.error.empty()) request.error.swap(error);
    request.unread -= part.length;
    if (request.unread > 0 || cancelled_) return;
    request.read = true;
    check_in_order(guard);
}

// In order, since a piece may go across earlier requests. One thread does it, for all that has been read by then.
void Streamer::check_in_order(std::unique_lock<std::mutex>& guard) {
    if (checking_) return;
    checking_ = true;
    while (!cancelled_ && next_check_ < requests_.size() &&
           (requests_[next_check_].read || requests_[next_check_].outcome == Outcome::GIVEN_UP)) {
        Request& request = requests_[next_check_];
        guard.unlock();
        if (request.read && request.error.empty()) request.error = error_of([&] { request.check_pieces(); });
        guard.lock();
        finish(request);
        changed_.notify_all();
    }
    checking_ = false;
}

void Streamer::finish(Request& request) {
    if (request.read) {
        request.timing.end = now();
        request.outcome = request.error.empty() ? Outcome::CHECKED : Outcome::FAILED;
        if (!request.error.empty() && !failed(request.step)) failure_ = &request;
    }
    --unread_.find(request.step)->second;
    --unfinished_;
    ++next_check_;
}

}  // namespace sti
