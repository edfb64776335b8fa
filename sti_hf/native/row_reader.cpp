#include "row_reader.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <thread>
#include <utility>
#include <vector>

#include "crc32c.h"

namespace sti {
namespace {

struct Free {
    void operator()(void* memory) const { std::free(memory); }
};

// The row after those from `first` on that follow each other without a gap.
size_t end_of_run(const Rows& rows, size_t first) {
    size_t end = first + 1;
    while (end < rows.count && rows.offsets[end] - rows.offsets[end - 1] == static_cast<int64_t>(rows.row_bytes)) ++end;
    return end;
}

void check_offsets(const Rows& rows) {
    int64_t previous = 0;
    for (size_t i = 0; i < rows.count; ++i) {
        if (rows.offsets[i] < previous)
            throw std::invalid_argument("row offsets must be ascending and not negative, but offset " +
                                        std::to_string(i) + " is " + std::to_string(rows.offsets[i]) + " after " +
                                        std::to_string(previous));
        previous = rows.offsets[i];
    }
}

}  // namespace

struct RowReader::Gather {
    const Rows& rows;
    uint8_t* out;
    std::vector<std::pair<size_t, size_t>> requested{};  // first row of a run, and the one after its last
    uint64_t requested_to = 0;                           // end of the last block that was asked for
    uint64_t bytes = 0;
    RateLimit::Clock::time_point earliest_end{};

    uint8_t* target(size_t row) const { return out + row * rows.row_bytes; }
    uint64_t begin(size_t row) const { return rows.offsets[row] / BLOCK * BLOCK; }
    uint64_t end(size_t row) const { return (rows.offsets[row] + rows.row_bytes + BLOCK - 1) / BLOCK * BLOCK; }
    size_t bytes_of(size_t first, size_t end) const { return (end - first) * rows.row_bytes; }

    // Throws where the file ends, at `size`, before one of the rows `first` to before `end` does.
    void check_end(const std::string& path, uint64_t size, size_t first, size_t end) const {
        for (size_t row = first; row < end; ++row)
            if (rows.offsets[row] + rows.row_bytes > size)
                throw StreamError(path + ": the file is cut short: it ends at offset " + std::to_string(size) +
                                  ", before the end of the row at offset " + std::to_string(rows.offsets[row]));
    }
};

RowReader::RowReader(const std::string& path, double rate_limit)
    : rate_limit_(rate_limit), cached_(path), direct_(path, true) {}

uint64_t RowReader::read(const Rows& rows, uint8_t* out, bool direct) {
    check_offsets(rows);
    Gather gather{rows, out};
    for (size_t row = 0; row < rows.count;) {
        const size_t end = end_of_run(rows, row);
        if (direct)
            read_direct(gather, row, end);
        else
            request(gather, row, end);
        row = end;
    }
    finish(gather);
    for (size_t i = 0; rows.crcs && i < rows.count; ++i)
        if (crc32c(gather.target(i), rows.row_bytes) != rows.crcs[i])
            throw StreamError(cached_.path() + ": the checksum of the row at offset " +
                              std::to_string(rows.offsets[i]) +
                              " does not match: the store is damaged; run `sti verify`");
    return gather.bytes;
}

// Reads rows `first` to before `end`, which are neighbours.
void RowReader::read_direct(Gather& gather, size_t first, size_t end) {
    const uint64_t begin = gather.begin(first);
    const size_t length = gather.end(end - 1) - begin;
    gather.earliest_end = rate_limit_.reserve(length);
    const std::unique_ptr<uint8_t, Free> blocks(static_cast<uint8_t*>(std::aligned_alloc(BLOCK, length)));
    if (!blocks) throw std::bad_alloc();
    const size_t available = direct_.read(blocks.get(), length, begin);
    gather.check_end(direct_.path(), begin + available, first, end);
    std::memcpy(gather.target(first), blocks.get() + (gather.rows.offsets[first] - begin),
                gather.bytes_of(first, end));
    gather.bytes += length;
}

// Takes neighbours from the page cache, or has the system begin to read them.
void RowReader::request(Gather& gather, size_t first, size_t end) {
    const int64_t offset = gather.rows.offsets[first];
    if (cached_.read_cached(gather.target(first), gather.bytes_of(first, end), offset)) return;
    gather.requested.emplace_back(first, end);
    const uint64_t begin = std::max(gather.begin(first), gather.requested_to), stop = gather.end(end - 1);
    if (begin >= stop) return;
    cached_.prefetch(stop - begin, begin);
    gather.earliest_end = rate_limit_.reserve(stop - begin);
    gather.requested_to = stop;
    gather.bytes += stop - begin;
}

// Waits for the rows that were asked for.
void RowReader::finish(Gather& gather) {
    for (const auto& [first, end] : gather.requested) {
        const int64_t offset = gather.rows.offsets[first];
        const size_t available = cached_.read(gather.target(first), gather.bytes_of(first, end), offset);
        gather.check_end(cached_.path(), offset + available, first, end);
    }
    std::this_thread::sleep_until(gather.earliest_end);
}

}  // namespace sti
