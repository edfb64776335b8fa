#include "row_reader.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <thread>
#include <vector>

#include "crc32c.h"

namespace sti {
namespace {

constexpr size_t RUN_BYTES = 128 << 10;  // neighbours of at least so many bytes are a run

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
    std::vector<size_t> requested{};
    uint64_t requested_to = 0;  // end of the last block that was asked for
    uint64_t bytes = 0;
    RateLimit::Clock::time_point earliest_end{};

    uint8_t* target(size_t row) const { return out + row * rows.row_bytes; }
    uint64_t begin(size_t row) const { return rows.offsets[row] / BLOCK * BLOCK; }
    uint64_t end(size_t row) const { return (rows.offsets[row] + rows.row_bytes + BLOCK - 1) / BLOCK * BLOCK; }

    [[noreturn]] void cut_short(const std::string& path, uint64_t end, size_t row) const {
        throw StreamError(path + ": the file is cut short: it ends at offset " + std::to_string(end) +
                          ", before the end of the row at offset " + std::to_string(rows.offsets[row]));
    }
};

RowReader::RowReader(const std::string& path, double rate_limit)
    : rate_limit_(rate_limit), cached_(path), direct_(path, true) {}

uint64_t RowReader::read(const Rows& rows, uint8_t* out) {
    check_offsets(rows);
    Gather gather{rows, out};
    for (size_t row = 0; row < rows.count;) {
        const size_t end = end_of_run(rows, row);
        if ((end - row) * rows.row_bytes >= RUN_BYTES)
            read_run(gather, row, end);
        else
            for (size_t i = row; i < end; ++i) request(gather, i);
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
void RowReader::read_run(Gather& gather, size_t first, size_t end) {
    const uint64_t begin = gather.begin(first);
    const size_t length = gather.end(end - 1) - begin;
    gather.earliest_end = rate_limit_.reserve(length);
    const std::unique_ptr<uint8_t, Free> blocks(static_cast<uint8_t*>(std::aligned_alloc(BLOCK, length)));
    if (!blocks) throw std::bad_alloc();
    const size_t available = direct_.read(blocks.get(), length, begin);
    for (size_t row = first; row < end; ++row)
        if (gather.rows.offsets[row] + gather.rows.row_bytes > begin + available)
            gather.cut_short(direct_.path(), begin + available, row);
    std::memcpy(gather.target(first), blocks.get() + (gather.rows.offsets[first] - begin),
                (end - first) * gather.rows.row_bytes);
    gather.bytes += length;
}

// Takes a row from the page cache, or has the system begin to read it.
void RowReader::request(Gather& gather, size_t row) {
    const Rows& rows = gather.rows;
    if (cached_.read_cached(gather.target(row), rows.row_bytes, rows.offsets[row])) return;
    gather.requested.push_back(row);
    const uint64_t begin = std::max(gather.begin(row), gather.requested_to), end = gather.end(row);
    if (begin >= end) return;
    cached_.prefetch(end - begin, begin);
    gather.earliest_end = rate_limit_.reserve(end - begin);
    gather.requested_to = end;
    gather.bytes += end - begin;
}

// Waits for the rows that were asked for.
void RowReader::finish(Gather& gather) {
    const Rows& rows = gather.rows;
    for (size_t row : gather.requested) {
        const size_t available = cached_.read(gather.target(row), rows.row_bytes, rows.offsets[row]);
        if (available < rows.row_bytes) gather.cut_short(cached_.path(), rows.offsets[row] + available, row);
    }
    std::this_thread::sleep_until(gather.earliest_end);
}

}  // namespace sti
