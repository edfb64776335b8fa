// Locations: where bytes are, inside a sequence of buffers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace sti {

struct Region {
    uint8_t* data;
    size_t size;
};

// A location is `buffer_index << 56 | byte_offset`; ABSENT marks something that is not there.
class Buffers {
public:
    static constexpr int64_t ABSENT = -1;
    static constexpr int OFFSET_BITS = 56;

    explicit Buffers(std::vector<Region> regions) : regions_(std::move(regions)) {}

    // The `length` bytes at `location`. Throws std::invalid_argument unless all of them are inside one buffer; what
    // they are is said by `name()`, which is called only then.
    template <class Name>
    uint8_t* at(int64_t location, uint64_t length, const Name& name) const {
        const uint64_t index = static_cast<uint64_t>(location) >> OFFSET_BITS;
        const uint64_t offset = static_cast<uint64_t>(location) & ((uint64_t{1} << OFFSET_BITS) - 1);
        if (location < 0 || index >= regions_.size())
            throw std::invalid_argument(name() + " is in buffer " + (location < 0 ? "-1" : std::to_string(index)) +
                                        ", but there are " + std::to_string(regions_.size()) + " buffers");
        const Region& region = regions_[index];
        if (offset > region.size || length > region.size - offset)
            throw std::invalid_argument(name() + " (" + std::to_string(length) + " bytes at " +
                                        std::to_string(offset) + ") is out of the range of buffer " +
                                        std::to_string(index) + " (" + std::to_string(region.size) + " bytes)");
        return region.data + offset;
    }

private:
    std::vector<Region> regions_;
};

}  // namespace sti
