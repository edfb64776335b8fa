#include <nanobind/stl/string.h>

#include "arrays.h"
#include "bindings.h"
#include "row_reader.h"

namespace sti {
namespace {

using Offsets = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Checksums = nb::ndarray<const uint32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

class PyRowReader {
public:
    PyRowReader(const std::string& path, double rate_limit) : reader_(path, rate_limit) {}

    uint64_t read(nb::handle offsets, int64_t row_bytes, nb::handle out, nb::handle crcs, bool direct) {
        const auto rows = as_array<Offsets>(offsets, "offsets", "an int64 array [k]");
        const auto target = as_array<Bytes>(out, "out", "a writable uint8 array");
        Checksums checksums;
        if (!crcs.is_none()) {
            checksums = as_array<Checksums>(crcs, "crcs", "a uint32 array [k]");
            if (checksums.shape(0) != rows.shape(0))
                throw std::invalid_argument("crcs must have one checksum for each offset");
        }
        if (row_bytes <= 0) throw std::invalid_argument("row_bytes must be positive");
        if (target.nbytes() != rows.shape(0) * static_cast<size_t>(row_bytes))
            throw std::invalid_argument("out must have the size of " + std::to_string(rows.shape(0)) + " rows of " +
                                        std::to_string(row_bytes) + " bytes, but has " +
                                        std::to_string(target.nbytes()) + " bytes");
        const uint32_t* expected = crcs.is_none() ? nullptr : checksums.data();
        nb::gil_scoped_release released;
        return reader_.read({rows.data(), rows.shape(0), static_cast<size_t>(row_bytes), expected}, target.data(),
                            direct);
    }

private:
    RowReader reader_;
};

constexpr const char* ROW_READER_DOC = R"(Reads rows of a table, such as the embeddings of some tokens.

Needs no threads, and serves a forked child as well.

Args:
    path: File to read.
    rate_limit: Bytes per second that the disk is made to look like, 0 for as fast as it is; for benchmarks.

Methods may be called from any thread.

Raises:
    OSError: The file cannot be opened.)";

constexpr const char* READ_DOC = R"(Read rows.

They go through the page cache, all at once: those read lately may still be there.

Args:
    offsets: int64 `[k]`, ascending, of any alignment.
    row_bytes: Length of a row.
    out: uint8, `k * row_bytes` in all.
    crcs: uint32 `[k]`, CRC-32C of each row, or None to check nothing.
    direct: Read past the page cache, as a whole table in large parts should be.

Returns the bytes read from the disk, in whole blocks.

Raises:
    StreamError: The file ends before a row does, or a checksum does not match.
    ValueError: Offsets are not ascending, or sizes do not fit.)";

}  // namespace

void bind_row_reader(nb::module_& module) {
    using namespace nb::literals;
    nb::class_<PyRowReader>(module, "RowReader", ROW_READER_DOC)
        .def(nb::init<const std::string&, double>(), "path"_a, nb::kw_only(), "rate_limit"_a = 0.0)
        .def("read", &PyRowReader::read, "offsets"_a, "row_bytes"_a, "out"_a, "crcs"_a = nb::none(),
             nb::kw_only(), "direct"_a = false,
             nb::sig("def read(self, offsets: NDArray[np.int64], row_bytes: int, "
                     "out: NDArray[np.uint8] | torch.Tensor, crcs: NDArray[np.uint32] | None = None, "
                     "*, direct: bool = False) -> int"),
             READ_DOC);
}

}  // namespace sti
