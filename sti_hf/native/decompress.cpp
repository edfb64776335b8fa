#include "decompress.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <string>

#include "float_formats.h"
#include "openmp.h"
#include "thread_pool.h"

namespace sti {
namespace {

constexpr int64_t FULL = 32;
constexpr size_t PART_WEIGHTS = 1 << 15;    // a thread's piece of work: large against taking it, small against a cache
constexpr size_t THREAD_WEIGHTS = 1 << 17;  // what a thread is worth calling for

struct Outliers {
    size_t count = 0;
    const uint8_t* positions = nullptr;  // u32, row * row_length + column
    const uint8_t* values = nullptr;     // f32
};

struct Slice {
    PlaneRows rows;
    const uint8_t* full = nullptr;  // set at full fidelity alone
    Outliers outliers;
};

// Finds the parts of one slice, all inside the buffers.
class SliceFinder {
public:
    SliceFinder(const Buffers& buffers, const MatrixRequest& request, size_t index)
        : buffers_(buffers), request_(request), row_(request.table[index]), index_(index) {}

    Slice find() const {
        Slice slice;
        if (row_.fidelity == FULL)
            slice.full = at(row_.full_weights, weights() * itemsize(request_.full_dtype), "full weights");
        else if (row_.fidelity >= 2 && row_.fidelity <= MAX_BITS)
            find_planes(slice.rows);
        else
            throw std::invalid_argument("slice " + std::to_string(index_) + " has fidelity " +
                                        std::to_string(row_.fidelity) + "; a fidelity is 2, 3, 4, 5, 6 or 32 bits");
        if (row_.outliers != Buffers::ABSENT) find_outliers(slice.outliers);
        return slice;
    }

private:
    size_t weights() const { return request_.slice_rows * request_.row_length; }

    const uint8_t* at(int64_t location, uint64_t length, const char* part) const {
        return buffers_.at(location, length, [&] { return "slice " + std::to_string(index_) + "'s " + part; });
    }

    void find_planes(PlaneRows& rows) const {
        static const char* const names[MAX_BITS] = {"plane 1", "plane 2", "plane 3", "plane 4", "plane 5", "plane 6"};
        rows.bits = static_cast<int>(row_.fidelity);
        rows.row_length = request_.row_length;
        for (int p = 0; p < rows.bits; ++p) rows.planes[p] = at(row_.planes[p], weights() / 8, names[p]);
        const size_t codebook_bytes = sizeof(float) << rows.bits;
        std::memcpy(rows.codebook, at(row_.codebook, codebook_bytes, "codebook"), codebook_bytes);
        const bool scaled = row_.scales != Buffers::ABSENT;
        rows.scales = scaled ? at(row_.scales, 2 * request_.slice_rows, "row scales") : nullptr;
    }

    void find_outliers(Outliers& outliers) const {
        const size_t counts_bytes = 4 * request_.matrices;
        const uint8_t* counts = at(row_.outliers, counts_bytes, "outlier counts");
        uint64_t before = 0, total = 0;
        for (size_t i = 0; i < request_.matrices; ++i) {
            if (i == request_.matrix) before = total;
            total += load<uint32_t>(counts + 4 * i);
        }
        const uint8_t* section = at(row_.outliers, counts_bytes + 8 * total, "outliers");
        outliers.count = load<uint32_t>(counts + 4 * request_.matrix);
        outliers.positions = section + counts_bytes + 4 * before;
        outliers.values = outliers.positions + 4 * total;
    }

    const Buffers& buffers_;
    const MatrixRequest& request_;
    const SliceRow& row_;
    const size_t index_;
};

void write_outliers(const Outliers& outliers, size_t slice, const MatrixRequest& request, uint8_t* out) {
    const size_t weights = request.slice_rows * request.row_length;
    for (size_t i = 0; i < outliers.count; ++i) {
        const uint32_t position = load<uint32_t>(outliers.positions + 4 * i);
        if (position >= weights)
            throw std::invalid_argument("slice " + std::to_string(slice) + " has an outlier at " +
                                        std::to_string(position) + ", outside its " + std::to_string(weights) +
                                        " weights: the store is damaged");
        const float value = load<float>(outliers.values + 4 * i);
        if (request.out_dtype == DType::float32)
            store(out + size_t{4} * position, value);
        else
            store(out + size_t{2} * position, float_to_bfloat16(value));
    }
}

}  // namespace

void decompress(const Buffers& buffers, const MatrixRequest& request, void* out, int threads) {
    std::vector<Slice> slices;
    slices.reserve(request.slices);
    for (size_t i = 0; i < request.slices; ++i) slices.push_back(SliceFinder(buffers, request, i).find());

    const Kernels& kernel = kernels();
    const size_t row_bytes = request.row_length * itemsize(request.out_dtype);
    const size_t part_rows = std::max<size_t>(1, PART_WEIGHTS / request.row_length);
    const size_t parts = (request.slice_rows + part_rows - 1) / part_rows;
    const auto unfinished = std::make_unique<std::atomic<size_t>[]>(request.slices);
    for (size_t i = 0; i < request.slices; ++i) unfinished[i] = parts;

    const size_t worthwhile = request.slices * request.slice_rows * request.row_length / THREAD_WEIGHTS;
    const int used = static_cast<int>(std::min<size_t>(std::max(threads, 1), std::max<size_t>(worthwhile, 1)));
    const auto write_part = [&](size_t task) {
        const size_t index = task / parts, first = task % parts * part_rows;
        const size_t count = std::min(part_rows, request.slice_rows - first);
        const Slice& slice = slices[index];
        uint8_t* slice_out = static_cast<uint8_t*>(out) + index * request.slice_rows * row_bytes;
        uint8_t* part_out = slice_out + first * row_bytes;
        if (slice.full) {
            const size_t offset = first * request.row_length * itemsize(request.full_dtype);
            kernel.convert(slice.full + offset, request.full_dtype, count * request.row_length, part_out,
                           request.out_dtype);
        } else {
            kernel.decode(slice.rows, first, count, part_out, request.out_dtype);
        }
        // Outliers lie anywhere in the slice: whoever ends its last part writes them.
        if (--unfinished[index] == 0) write_outliers(slice.outliers, index, request, slice_out);
    };
    const size_t tasks = request.slices * parts;
    if (used > 1 && run_on_openmp(tasks, used, write_part)) return;
    ThreadPool::compute().run(tasks, used, write_part);
}

}  // namespace sti
