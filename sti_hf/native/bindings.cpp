#include "bindings.h"

NB_MODULE(_native, module) {
    sti::bind_errors();
    sti::bind_decompress(module);
    sti::bind_streamer(module);
    sti::bind_row_reader(module);
}
