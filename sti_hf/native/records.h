// Structured NumPy arrays: the structs of this module, field by field, as records.py names them.
#pragma once

#include <nanobind/nanobind.h>

#include <cstddef>
#include <cstring>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "decompress.h"
#include "request.h"

namespace sti {

namespace nb = nanobind;

struct Field {
    const char* name;
    const char* scalar;  // as NumPy writes it
    size_t offset, size;
};

template <class Type>
constexpr const char* SCALAR = std::is_floating_point_v<std::remove_all_extents_t<Type>> ? "<f8" : "<i8";

// The name of a struct's dtype in records.py, and its fields.
template <class Record>
struct Twin;

#define STI_FIELD(record, field) \
    Field { #field, SCALAR<decltype(record::field)>, offsetof(record, field), sizeof(record::field) }

template <>
struct Twin<RequestRow> {
    static constexpr const char* name = "REQUEST";
    static constexpr Field fields[] = {STI_FIELD(RequestRow, file),   STI_FIELD(RequestRow, offset),
                                       STI_FIELD(RequestRow, length), STI_FIELD(RequestRow, target),
                                       STI_FIELD(RequestRow, step),   STI_FIELD(RequestRow, wait_for),
                                       STI_FIELD(RequestRow, pieces)};
};

template <>
struct Twin<PieceRow> {
    static constexpr const char* name = "PIECE";
    static constexpr Field fields[] = {STI_FIELD(PieceRow, target), STI_FIELD(PieceRow, length),
                                       STI_FIELD(PieceRow, crc32c), STI_FIELD(PieceRow, offset)};
};

template <>
struct Twin<Timing> {
    static constexpr const char* name = "TIMING";
    static constexpr Field fields[] = {STI_FIELD(Timing, start), STI_FIELD(Timing, end)};
};

template <>
struct Twin<SliceRow> {
    static constexpr const char* name = "SLICE";
    static constexpr Field fields[] = {STI_FIELD(SliceRow, fidelity), STI_FIELD(SliceRow, full_weights),
                                       STI_FIELD(SliceRow, planes),   STI_FIELD(SliceRow, codebook),
                                       STI_FIELD(SliceRow, scales),   STI_FIELD(SliceRow, outliers)};
};

#undef STI_FIELD

// Whether a NumPy dtype has exactly the fields of the struct.
template <class Record>
bool mirrors(nb::handle dtype) {
    const nb::object fields = nb::getattr(dtype, "fields", nb::none());
    if (fields.is_none() || nb::len(fields) != std::size(Twin<Record>::fields) ||
        nb::cast<size_t>(dtype.attr("itemsize")) != sizeof(Record))
        return false;
    for (const Field& field : Twin<Record>::fields) {
        const nb::object found = fields.attr("get")(field.name);
        if (found.is_none() || nb::cast<size_t>(found[1]) != field.offset ||
            nb::cast<size_t>(found[0].attr("itemsize")) != field.size ||
            nb::cast<std::string>(found[0].attr("base").attr("str")) != field.scalar)
            return false;
    }
    return true;
}

// A one-dimensional array of a struct's dtype, kept alive and not copied. Throws nb::type_error for anything else.
template <class Record>
class Records {
public:
    Records(nb::handle array, const std::string& name) {
        const bool fits = mirrors<Record>(nb::getattr(array, "dtype", nb::none())) &&
                          PyObject_GetBuffer(array.ptr(), &view_, PyBUF_C_CONTIGUOUS) == 0;
        if (fits && view_.ndim == 1) return;
        if (fits) PyBuffer_Release(&view_);
        PyErr_Clear();
        throw nb::type_error((name + " must be a contiguous array [n] of the dtype sti_hf.native." +
                              Twin<Record>::name).c_str());
    }
    ~Records() { PyBuffer_Release(&view_); }
    Records(const Records&) = delete;
    Records& operator=(const Records&) = delete;

    const Record* data() const { return static_cast<const Record*>(view_.buf); }
    size_t size() const { return static_cast<size_t>(view_.shape[0]); }

private:
    Py_buffer view_{};
};

// A new array of the struct's dtype.
template <class Record>
nb::object to_array(const std::vector<Record>& records) {
    const nb::object dtype = nb::module_::import_("sti_hf.native.records").attr(Twin<Record>::name);
    if (!mirrors<Record>(dtype))
        throw std::logic_error(std::string("the fields of ") + Twin<Record>::name + " are not those of its C++ struct");
    nb::object array = nb::module_::import_("numpy").attr("empty")(records.size(), dtype);
    if (!records.empty())
        std::memcpy(const_cast<Record*>(Records<Record>(array, "array").data()), records.data(),
                    records.size() * sizeof(Record));
    return array;
}

}  // namespace sti
