// Compressed slices -> the rows of one matrix.
#pragma once

#include <cstddef>
#include <cstdint>

#include "buffers.h"
#include "kernels.h"

namespace sti {

// One row for every slice; see the columns in decompress.cpp.
constexpr size_t TABLE_COLUMNS = 10;

struct MatrixRequest {
    const int64_t* table;  // [slices, TABLE_COLUMNS]
    size_t slices;
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
