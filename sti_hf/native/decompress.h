// Compressed slices -> the rows of one matrix.
#pragma once

#include <cstddef>
#include <cstdint>

#include "buffers.h"
#include "kernels.h"

namespace sti {

// Where the parts of one matrix of a slice are; records.py says what is in them.
struct SliceRow {
    int64_t fidelity, full_weights, planes[MAX_BITS], codebook, scales, outliers;
};

struct MatrixRequest {
    const SliceRow* table;
    size_t slices;      // in the table
    size_t matrix;      // index of the matrix among the slice's matrices
    size_t matrices;    // how many matrices a slice has
    size_t row_length;  // weights in a row
    size_t slice_rows;  // rows that each slice gives
    DType full_dtype;   // dtype of weights at full fidelity
    DType out_dtype;    // float32 or bfloat16
};

// Writes all slices' rows to `out`, `[slices * slice_rows, row_length]`. Throws std::invalid_argument where the table
// points outside the buffers.
void decompress(const Buffers& buffers, const MatrixRequest& request, void* out, int threads);

}  // namespace sti
