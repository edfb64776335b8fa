// Arguments from Python: NumPy arrays and PyTorch tensors, through DLPack or the buffer protocol, never copied.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <string>
#include <vector>

#include "buffers.h"

namespace sti {

namespace nb = nanobind;

using AnyArray = nb::ndarray<nb::c_contig, nb::device::cpu>;
using AnyConstArray = nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<uint8_t, nb::c_contig, nb::device::cpu>;
using ConstBytes = nb::ndarray<const uint8_t, nb::c_contig, nb::device::cpu>;

// Throws nb::type_error with a sentence that says what was expected; unlike a function's argument, does not copy.
template <class Array>
Array as_array(nb::handle object, const std::string& name, const char* expected) {
    Array array;
    if (!nb::try_cast<Array>(object, array, false))
        throw nb::type_error((name + " must be " + expected + ", contiguous and on the CPU").c_str());
    return array;
}

// Buffers and the Python arrays that keep them alive.
template <class Array>
struct HeldBuffers {
    std::vector<Array> arrays;

    explicit HeldBuffers(nb::sequence objects, const char* expected) {
        for (nb::handle object : objects)
            arrays.push_back(as_array<Array>(object, "buffer " + std::to_string(arrays.size()), expected));
    }

    Buffers regions() const {
        std::vector<Region> regions;
        for (const Array& array : arrays)
            regions.push_back({const_cast<uint8_t*>(array.data()), array.nbytes()});
        return Buffers(std::move(regions));
    }
};

}  // namespace sti
