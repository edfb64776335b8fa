#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "arrays.h"
#include "bindings.h"
#include "crc32c.h"
#include "decompress.h"
#include "records.h"

namespace sti {
namespace {

DType full_dtype_named(const std::string& name) {
    if (name == "float32") return DType::float32;
    if (name == "bfloat16") return DType::bfloat16;
    if (name == "float16") return DType::float16;
    throw std::invalid_argument("full_dtype is \"" + name + "\"; it must be float32, bfloat16 or float16");
}

DType out_dtype_of(const AnyArray& out) {
    if (out.dtype() == nb::dtype<float>()) return DType::float32;
    if (out.dtype().code == static_cast<uint8_t>(nb::dlpack::dtype_code::Bfloat) && out.dtype().bits == 16)
        return DType::bfloat16;
    throw nb::type_error("out must be float32 or bfloat16");
}

// Arguments that are checked once, for a matrix that is decompressed again and again.
class PyDecompression {
public:
    PyDecompression(nb::sequence buffers, nb::handle table, int64_t matrix, int64_t row_length, nb::handle out,
                    int64_t matrices, const std::string& full_dtype)
        : held_(buffers, "a uint8 array"),
          regions_(held_.regions()),
          table_(table, "table"),
          out_(as_array<AnyArray>(out, "out", "a writable float32 or bfloat16 array")) {
        const size_t slices = table_.size();
        if (row_length <= 0 || row_length % 8 != 0)
            throw std::invalid_argument("row_length is " + std::to_string(row_length) +
                                        "; it must be a multiple of 8");
        if (matrix < 0 || matrix >= matrices)
            throw std::invalid_argument("matrix is " + std::to_string(matrix) + ", but there are " +
                                        std::to_string(matrices) + " matrices");
        if (slices == 0 || out_.ndim() != 2 || out_.shape(1) != static_cast<size_t>(row_length) ||
            out_.shape(0) % slices != 0)
            throw std::invalid_argument("out must have the shape [slices * rows, row_length], for " +
                                        std::to_string(slices) + " slices and rows of " + std::to_string(row_length));
        request_ = {table_.data(),
                    slices,
                    static_cast<size_t>(matrix),
                    static_cast<size_t>(matrices),
                    static_cast<size_t>(row_length),
                    out_.shape(0) / slices,
                    full_dtype_named(full_dtype),
                    out_dtype_of(out_)};
    }

    void run(int threads) const {
        nb::gil_scoped_release released;
        decompress(regions_, request_, out_.data(), threads);
    }

private:
    HeldBuffers<ConstBytes> held_;
    Buffers regions_;
    Records<SliceRow> table_;
    AnyArray out_;
    MatrixRequest request_;
};

uint32_t checksum(nb::handle buffer, uint32_t value) {
    const auto bytes = as_array<ConstBytes>(buffer, "buffer", "a uint8 array or bytes");
    nb::gil_scoped_release released;
    return crc32c(bytes.data(), bytes.nbytes(), value);
}

constexpr const char* DECOMPRESSION_DOC = R"(Writes one matrix of a layer's active slices, from bit-planes or full weights, whenever it is run.

Nothing needs an alignment. Numbers are little-endian.

Args:
    buffers: 1-D uint8 arrays or tensors, in which the locations of the table are.
    table: `SLICE` `[m]`, in the order of the slices in `out`.
    matrix: Index of this matrix among the matrices of a slice.
    row_length: Weights in a row, a multiple of 8.
    out: float32 or bfloat16 `[m * rows, row_length]`, contiguous.
    matrices: How many matrices a slice has.
    full_dtype: Of weights at 32 bits: "float32", "bfloat16" or "float16".

All arrays are kept alive, and none is copied: a run reads what is in them then, the table included.
A weight is `codebook[code] * scale` in float32; outliers take the place of the weights at their positions;
the result is rounded to the nearest (even) where `out` is bfloat16.
`sti_hf.shards.reference.decompress_reference` gives the same bits.

Raises:
    ValueError: A size makes no sense.
    TypeError: An array has another dtype or is not contiguous.)";

constexpr const char* RUN_DOC = R"(Write the matrix. The GIL is released.

Args:
    threads: Threads to use at most, the caller's among them; a small matrix is left to the caller alone.

Raises:
    ValueError: A location or an outlier is out of range, or a fidelity makes no sense.)";

constexpr const char* CRC32C_DOC = R"(CRC-32C (Castagnoli) of a buffer of bytes.

`value` is the checksum of the bytes before these: `crc32c(b, crc32c(a)) == crc32c(a + b)`.)";

}  // namespace

void bind_decompress(nb::module_& module) {
    using namespace nb::literals;
    nb::class_<PyDecompression>(module, "Decompression", DECOMPRESSION_DOC)
        .def(nb::init<nb::sequence, nb::handle, int64_t, int64_t, nb::handle, int64_t, const std::string&>(),
             "buffers"_a, "table"_a, "matrix"_a, "row_length"_a, "out"_a, nb::kw_only(), "matrices"_a,
             "full_dtype"_a = "float32",
             nb::sig("def __init__(self, buffers: Sequence[NDArray[np.uint8] | torch.Tensor], table: "
                     "NDArray[np.void], matrix: int, row_length: int, out: NDArray[np.float32] | torch.Tensor, *, "
                     "matrices: int, full_dtype: str = 'float32') -> None"))
        .def("run", &PyDecompression::run, "threads"_a = 1, RUN_DOC);
    module.def("crc32c", checksum, "buffer"_a, "value"_a = 0,
               nb::sig("def crc32c(buffer: bytes | memoryview | NDArray[np.uint8] | torch.Tensor, "
                       "value: int = 0) -> int"),
               CRC32C_DOC);
    module.def("isa", [] { return kernels().isa; },
               "The instruction set in use: the fastest that this processor has, unless the environment variable\n"
               "STI_HF_ISA or `set_isa` names another.");
    module.def("available_isas", available_isas, "The instruction sets that this processor has, fastest first.");
    module.def("set_isa", set_isa, "name"_a,
               "Use this instruction set from now on. Raises ValueError where it is not available.");
}

}  // namespace sti
