#include "streamer.h"

#include <unistd.h>

#include <algorithm>
#include <limits>

#include "crc32c.h"
#include "row_reader.h"

namespace sti {
namespace {

constexpr size_t PART_BYTES = 2 << 20;  // one read: large enough for the disk, small enough to cancel soon

constexpr int64_t MAX_OFFSET = int64_t{1} << Buffers::OFFSET_BITS;
constexpr double NEVER = std::numeric_limits<double>::quiet_NaN();

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

void require(bool condition, size_t index, const char* kind, const char* sentence) {
    if (!condition) throw std::invalid_argument(std::string(kind) + " " + std::to_string(index) + ": " + sentence);
}

// Whether `row` reads what follows `previous`, to where that follows, so that a piece may go across both.
bool follows(const RequestRow& row, const RequestRow& previous) {
    return row.file == previous.file && row.group == previous.group &&
           row.offset == previous.offset + previous.length && row.target == previous.target + previous.length;
}

}  // namespace

struct Streamer::Piece {
    const uint8_t* target;
    size_t length;
    uint32_t crc;
    uint64_t offset;  // in the file
};

struct Streamer::Request {
    std::shared_ptr<File> file;
    uint64_t offset;
    size_t length;
    uint8_t* target;
    int64_t group;
    int64_t wait_for;
    size_t first_piece;
    size_t pieces;
    size_t unread;      // bytes
    size_t available;   // bytes before the file's end
    bool read = false;  // all of it, and not yet checked
    std::string error;
    Timing timing{NEVER, NEVER};
};

struct Streamer::Part {
    Request* request;
    size_t first;
    size_t length;
};

Streamer::Streamer(const std::vector<std::string>& paths, Buffers buffers, bool direct, int threads, double rate_limit)
    : process_(getpid()), buffers_(std::move(buffers)), rate_limit_(rate_limit), max_reads_(threads) {
    kernels();  // where STI_HF_ISA is wrong, that is said here and not on a reading thread
    for (const std::string& path : paths) files_.push_back(std::make_shared<File>(path, direct));
    // One more, so that the disk is kept busy while checksums are computed.
    for (int i = 0; i < threads + 1; ++i) threads_.emplace_back(&Streamer::work, this);
}

Streamer::~Streamer() { close(); }

void Streamer::check_process() const {
    if (getpid() != process_)
        throw std::runtime_error("this streamer belongs to the parent process; make a new one after fork");
}

std::unique_lock<std::mutex> Streamer::lock() {
    check_process();
    return std::unique_lock<std::mutex>(mutex_);
}

Streamer::Request Streamer::make_request(const RequestRow& row, size_t index) const {
    const auto check = [&](bool condition, const char* sentence) { require(condition, index, "request", sentence); };
    check(row.file >= 0 && row.file < static_cast<int64_t>(files_.size()), "there is no such file");
    check(row.offset >= 0 && row.offset % BLOCK == 0, "the offset is not a multiple of 4096");
    check(row.offset < MAX_OFFSET, "the offset is larger than any file");
    check(row.length > 0 && row.length % BLOCK == 0, "the length is not a multiple of 4096");
    check(row.group >= 0, "the group is negative");
    const auto name = [&] { return "the destination of request " + std::to_string(index); };
    uint8_t* target = buffers_.at(row.target, row.length, name);
    const auto& file = files_[row.file];
    check(!file->direct() || reinterpret_cast<uintptr_t>(target) % BLOCK == 0,
          "direct reads need a destination that is aligned to 4096 bytes");

    Request request;
    request.file = file;
    request.offset = row.offset;
    request.length = request.unread = request.available = row.length;
    request.target = target;
    request.group = row.group;
    request.wait_for = row.wait_for;
    return request;
}

// `span`: what has been read of the file when `request` has, together with those that it continues.
Streamer::Piece Streamer::make_piece(const PieceRow& row, size_t index, const Request& request,
                                     const Span& span) const {
    const auto check = [&](bool condition, const char* sentence) { require(condition, index, "piece", sentence); };
    const auto offset = static_cast<int64_t>(request.offset);
    check(row.offset >= span.begin && row.offset <= span.end && row.length >= 0 && row.length <= span.end - row.offset,
          "it is not inside its request and those that it continues");
    const uint8_t* target = buffers_.at(row.target, row.length, [&] { return "piece " + std::to_string(index); });
    check(target == request.target + (row.offset - offset), "its destination is not where its request puts it");
    return {target, static_cast<size_t>(row.length), static_cast<uint32_t>(row.crc32c),
            static_cast<uint64_t>(row.offset)};
}

void Streamer::start(const RequestRow* rows, size_t request_count, const PieceRow* piece_rows, size_t piece_count) {
    const auto guard = lock();
    if (closed_) throw std::runtime_error("the streamer is closed");
    if (unfinished_ > 0) throw std::runtime_error("the streamer is still reading; cancel it before a new start");
    std::vector<Request> requests;
    std::vector<Piece> pieces;
    std::map<int64_t, size_t> unread;
    Span span{0, 0};
    for (size_t i = 0; i < request_count; ++i) {
        Request request = make_request(rows[i], i);
        const bool upwards = i > 0 && follows(rows[i], rows[i - 1]), downwards = i > 0 && follows(rows[i - 1], rows[i]);
        span = {upwards ? span.begin : rows[i].offset, downwards ? span.end : rows[i].offset + rows[i].length};
        require(rows[i].pieces >= 0 && static_cast<size_t>(rows[i].pieces) <= piece_count - pieces.size(), i,
                "request", "it has more pieces than are given");
        request.first_piece = pieces.size();
        request.pieces = rows[i].pieces;
        for (size_t j = 0; j < request.pieces; ++j)
            pieces.push_back(make_piece(piece_rows[pieces.size()], pieces.size(), request, span));
        ++unread[request.group];
        requests.push_back(std::move(request));
    }
    if (pieces.size() != piece_count) throw std::invalid_argument("there are more pieces than the requests have");

    ++run_;
    cancelled_ = false;
    requests_ = std::move(requests);
    pieces_ = std::move(pieces);
    unread_ = std::move(unread);
    errors_.clear();
    next_request_ = next_offset_ = next_check_ = 0;
    unfinished_ = request_count;
    released_ = 0;
    released_early_.clear();
    bytes_read_ = 0;
    work_.notify_all();
}

bool Streamer::settled(int64_t group) const {
    if (cancelled_ || (!errors_.empty() && errors_.begin()->first <= group)) return true;
    const auto found = unread_.find(group);
    return found == unread_.end() || found->second == 0;
}

bool Streamer::ready(int64_t group) {
    const auto guard = lock();
    return settled(group);
}

bool Streamer::wait(int64_t group, std::chrono::milliseconds timeout) {
    auto guard = lock();
    if (run_ == 0) throw std::runtime_error("nothing to wait for: the streamer has not been started");
    if (!changed_.wait_for(guard, timeout, [&] { return settled(group); })) return false;
    if (cancelled_) throw Cancelled("reading was cancelled");
    if (!errors_.empty() && errors_.begin()->first <= group) throw StreamError(errors_.begin()->second);
    return true;
}

void Streamer::release(int64_t group) {
    const auto guard = lock();
    if (group >= released_) released_early_.insert(group);
    while (released_early_.erase(released_)) ++released_;
    work_.notify_all();
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
    {
        const auto guard = lock();
        files_.clear();
        requests_.clear();
        threads.swap(threads_);
        work_.notify_all();
    }
    for (std::thread& thread : threads) thread.join();
}

uint64_t Streamer::read_rows(int64_t file, const int64_t* offsets, size_t count, size_t row_bytes, uint8_t* out,
                             const uint32_t* crcs, int threads) {
    std::shared_ptr<File> source;
    {
        const auto guard = lock();
        if (closed_) throw std::runtime_error("the streamer is closed");
        if (file < 0 || file >= static_cast<int64_t>(files_.size()))
            throw std::invalid_argument("there is no file " + std::to_string(file));
        source = files_[file];
    }
    return sti::read_rows(*source, rate_limit_, {offsets, count, row_bytes, crcs}, out, threads);
}

std::vector<Timing> Streamer::timings() {
    const auto guard = lock();
    std::vector<Timing> timings;
    for (const Request& request : requests_) timings.push_back(request.timing);
    return timings;
}

std::vector<bool> Streamer::direct() {
    const auto guard = lock();
    std::vector<bool> direct;
    for (const auto& file : files_) direct.push_back(file->direct());
    return direct;
}

bool Streamer::has_work() const {
    return reads_ < max_reads_ && next_request_ < requests_.size() && released_ >= requests_[next_request_].wait_for;
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
        work_.wait(guard, [&] { return closed_ || has_work(); });
        if (closed_) return;
        const Part part = take_part();
        ++in_flight_;
        ++reads_;
        guard.unlock();
        read_part(part);
        guard.lock();
        --in_flight_;
        changed_.notify_all();
    }
}

void Streamer::read_part(const Part& part) {
    Request& request = *part.request;
    const auto earliest_end = rate_limit_.reserve(part.length);
    size_t count = 0;
    std::string error;
    try {
        count = request.file->read(request.target + part.first, part.length, request.offset + part.first);
    } catch (const StreamError& caught) {
        error = caught.what();
    }
    bytes_read_ += count;

    std::unique_lock<std::mutex> guard(mutex_);
    work_.wait_until(guard, earliest_end, [&] { return cancelled_; });
    --reads_;
    work_.notify_all();
    if (count < part.length) request.available = std::min(request.available, part.first + count);
    if (request.error.empty()) request.error = error;
    request.unread -= part.length;
    if (request.unread > 0 || cancelled_) return;
    request.read = true;
    check_in_order(guard);
}

// In order, since a piece may go across earlier requests. One thread does it, for all that has been read by then.
void Streamer::check_in_order(std::unique_lock<std::mutex>& guard) {
    if (checking_) return;
    checking_ = true;
    while (!cancelled_ && next_check_ < requests_.size() && requests_[next_check_].read) {
        Request& request = requests_[next_check_];
        guard.unlock();
        if (request.error.empty()) {
            try {
                check_pieces(request);
            } catch (const StreamError& caught) {
                request.error = caught.what();
            }
        }
        guard.lock();
        finish(request);
        changed_.notify_all();
    }
    checking_ = false;
}

void Streamer::check_pieces(const Request& request) const {
    const uint64_t end = request.offset + request.available;
    const bool ends_inside = request.available < request.length;  // otherwise a piece may reach into the request above
    bool cut_short = request.length - request.available >= BLOCK;
    for (size_t i = request.first_piece; i < request.first_piece + request.pieces; ++i)
        cut_short |= ends_inside && pieces_[i].offset + pieces_[i].length > end;
    if (cut_short)
        throw StreamError(request.file->path() + ": the file is cut short: it ends at offset " + std::to_string(end) +
                          ", inside the " + std::to_string(request.length) + " bytes read from offset " +
                          std::to_string(request.offset));
    for (size_t i = request.first_piece; i < request.first_piece + request.pieces; ++i) {
        const Piece& piece = pieces_[i];
        if (crc32c(piece.target, piece.length) != piece.crc)
            throw StreamError(request.file->path() + ": the checksum of the " + std::to_string(piece.length) +
                              " bytes at offset " + std::to_string(piece.offset) +
                              " does not match: the store is damaged; run `sti verify`");
    }
}

void Streamer::finish(Request& request) {
    request.timing.end = now();
    if (!request.error.empty()) errors_.emplace(request.group, request.error);
    --unread_[request.group];
    --unfinished_;
    ++next_check_;
}

}  // namespace sti
