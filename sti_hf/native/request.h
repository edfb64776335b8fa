// What the streamer is asked to read, and what it must find there.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "buffers.h"
#include "file.h"

namespace sti {

// Records of the two arrays that `Streamer::start` takes; records.py says what is in them.
struct RequestRow {
    int64_t file, offset, length, target, step, wait_for, pieces;
};
struct PieceRow {
    int64_t target, length, crc32c, offset;
};

struct Timing {
    double start, end;  // seconds of the monotonic clock; NaN where nothing was read
};

enum class Outcome : uint8_t { PENDING, CHECKED, GIVEN_UP, FAILED };

struct Piece {
    const uint8_t* target;
    size_t length;
    uint32_t crc;
    uint64_t offset;  // in the file
};

struct Request {
    File* file;
    uint64_t offset;
    size_t length;
    uint8_t* target;
    int64_t step;
    int64_t wait_for;
    std::vector<Piece> pieces;  // complete with this request
    size_t unread;              // bytes
    size_t available;           // bytes before the file's end
    bool read = false;          // all of it, and not yet checked
    Outcome outcome = Outcome::PENDING;
    double latest = std::numeric_limits<double>::infinity();  // moment to begin
    std::string error;
    Timing timing{std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::quiet_NaN()};

    // Throws StreamError where the file ended too early or a checksum does not match.
    void check_pieces() const;
};

// Throws std::invalid_argument where a row makes no sense.
std::vector<Request> make_requests(const RequestRow* rows, size_t count, const PieceRow* pieces, size_t piece_count,
                                   const Files& files, const Buffers& buffers);

}  // namespace sti
