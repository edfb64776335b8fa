// The parts of the extension module.
#pragma once

#include <nanobind/nanobind.h>

namespace sti {

void bind_decompress(nanobind::module_& module);
void bind_errors();
void bind_row_reader(nanobind::module_& module);
void bind_streamer(nanobind::module_& module);

}  // namespace sti
