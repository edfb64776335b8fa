#include "row_reader.h"

#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <thread>
#include <vector>

#include "crc32c.h"
#include "thread_pool.h"

namespace sti {
namespace {

constexpr uint64_t MAX_RUN_BYTES = 128 << 10;  // rows that lie closer than this are read together

// Neighbouring rows whose blocks touch, read at once.
struct Run {
    size_t first, last;   // rows
    uint64_t begin, end;  // bytes of the file, whole blocks
};

struct Free {
    void operator()(void* memory) const { std::free(memory); }
};

std::vector<Run> find_runs(const Rows& rows) {
    std::vector<Run> runs;
    int64_t previous = 0;
    for (size_t i = 0; i < rows.count; ++i) {
        if (rows.offsets[i] < previous)
            throw std::invalid_argument("row offsets must be ascending and not negative, but offset " +
                                        std::to_string(i) + " is " + std::to_string(rows.offsets[i]) + " after " +
                                        std::to_string(previous));
        previous = rows.offsets[i];
        const uint64_t begin = rows.offsets[i] / BLOCK * BLOCK;
        const uint64_t end = (rows.offsets[i] + rows.row_bytes + BLOCK - 1) / BLOCK * BLOCK;
        if (!runs.empty() && begin <= runs.back().end && end - runs.back().begin <= MAX_RUN_BYTES) {
            runs.back().last = i;
            runs.back().end = end;
        } else {
            runs.push_back({i, i, begin, end});
        }
    }
    return runs;
}

void read_run(File& file, const Rows& rows, const Run& run, uint8_t* out) {
    const size_t length = run.end - run.begin;
    const std::unique_ptr<uint8_t, Free> blocks(static_cast<uint8_t*>(std::aligned_alloc(BLOCK, length)));
    if (!blocks) throw std::bad_alloc();
    const size_t available = file.read(blocks.get(), length, run.begin);
    for (size_t i = run.first; i <= run.last; ++i) {
        const size_t start = rows.offsets[i] - run.begin;
        if (start + rows.row_bytes > available)
            throw StreamError(file.path() + ": the file is cut short: it ends at offset " +
                              std::to_string(run.begin + available) + ", before the end of the row at offset " +
                              std::to_string(rows.offsets[i]));
        const uint8_t* row = blocks.get() + start;
        if (rows.crcs && crc32c(row, rows.row_bytes) != rows.crcs[i])
            throw StreamError(file.path() + ": the checksum of the row at offset " + std::to_string(rows.offsets[i]) +
                              " does not match: the store is damaged; run `sti verify`");
        std::memcpy(out + i * rows.row_bytes, row, rows.row_bytes);
    }
}

}  // namespace

uint64_t read_rows(File& file, RateLimit& rate_limit, const Rows& rows, uint8_t* out, int threads) {
    const std::vector<Run> runs = find_runs(rows);
    ThreadPool::reading().run(runs.size(), threads, [&](size_t index) {
        const Run& run = runs[index];
        const auto earliest_end = rate_limit.reserve(run.end - run.begin);
        read_run(file, rows, run, out);
        std::this_thread::sleep_until(earliest_end);
    });
    uint64_t bytes = 0;
    for (const Run& run : runs) bytes += run.end - run.begin;
    return bytes;
}

}  // namespace sti
