#include "request.h"

#include "crc32c.h"

namespace sti {
namespace {

constexpr int64_t MAX_OFFSET = int64_t{1} << Buffers::OFFSET_BITS;

// Part of the file: what consecutive requests read that continue each other.
struct Span {
    int64_t begin, end;
};

void require(bool condition, size_t index, const char* kind, const char* sentence) {
    if (!condition) throw std::invalid_argument(std::string(kind) + " " + std::to_string(index) + ": " + sentence);
}

// Whether `row` reads what follows `previous`, to where that follows, so that a piece may go across both.
bool follows(const RequestRow& row, const RequestRow& previous) {
    return row.file == previous.file && row.step == previous.step &&
           row.offset == previous.offset + previous.length && row.target == previous.target + previous.length;
}

Request make_request(const RequestRow& row, size_t index, const Files& files, const Buffers& buffers) {
    const auto check = [&](bool condition, const char* sentence) { require(condition, index, "request", sentence); };
    check(row.file >= 0 && row.file < static_cast<int64_t>(files.size()), "there is no such file");
    check(row.offset >= 0 && row.offset % BLOCK == 0, "the offset is not a multiple of 4096");
    check(row.offset < MAX_OFFSET, "the offset is larger than any file");
    check(row.length > 0 && row.length % BLOCK == 0, "the length is not a multiple of 4096");
    check(row.step >= 0, "the step is negative");
    const auto name = [&] { return "the destination of request " + std::to_string(index); };
    uint8_t* target = buffers.at(row.target, row.length, name);
    const auto& file = files[row.file];
    check(!file->direct() || reinterpret_cast<uintptr_t>(target) % BLOCK == 0,
          "direct reads need a destination that is aligned to 4096 bytes");

    Request request;
    request.file = file.get();
    request.offset = row.offset;
    request.length = request.unread = request.available = row.length;
    request.target = target;
    request.step = row.step;
    request.wait_for = row.wait_for;
    return request;
}

// `span`: what has been read of the file when `request` has, together with those that it continues.
Piece make_piece(const PieceRow& row, size_t index, const Request& request, const Span& span, const Buffers& buffers) {
    const auto check = [&](bool condition, const char* sentence) { require(condition, index, "piece", sentence); };
    const auto offset = static_cast<int64_t>(request.offset);
    check(row.offset >= span.begin && row.offset <= span.end && row.length >= 0 && row.length <= span.end - row.offset,
          "it is not inside its request and those that it continues");
    const uint8_t* target = buffers.at(row.target, row.length, [&] { return "piece " + std::to_string(index); });
    check(target == request.target + (row.offset - offset), "its destination is not where its request puts it");
    return {target, static_cast<size_t>(row.length), static_cast<uint32_t>(row.crc32c),
            static_cast<uint64_t>(row.offset)};
}

}  // namespace

std::vector<Request> make_requests(const RequestRow* rows, size_t count, const PieceRow* piece_rows,
                                   size_t piece_count, const Files& files, const Buffers& buffers) {
    std::vector<Request> requests;
    size_t made = 0;
    Span span{0, 0};
    for (size_t i = 0; i < count; ++i) {
        const RequestRow& row = rows[i];
        Request request = make_request(row, i, files, buffers);
        const bool upwards = i > 0 && follows(row, rows[i - 1]), downwards = i > 0 && follows(rows[i - 1], row);
        span = {upwards ? span.begin : row.offset, downwards ? span.end : row.offset + row.length};
        require(row.pieces >= 0 && static_cast<size_t>(row.pieces) <= piece_count - made, i, "request",
                "it has more pieces than are given");
        for (const size_t end = made + row.pieces; made < end; ++made)
            request.pieces.push_back(make_piece(piece_rows[made], made, request, span, buffers));
        requests.push_back(std::move(request));
    }
    if (made != piece_count) throw std::invalid_argument("there are more pieces than the requests have");
    return requests;
}

void Request::check_pieces() const {
    const uint64_t end = offset + available;
    const bool ends_inside = available < length;  // otherwise a piece may reach into the request above
    bool cut_short = length - available >= BLOCK;
    for (const Piece& piece : pieces) cut_short |= ends_inside && piece.offset + piece.length > end;
    if (cut_short)
        throw StreamError(file->path() + ": the file is cut short: it ends at offset " + std::to_string(end) +
                          ", inside the " + std::to_string(length) + " bytes read from offset " +
                          std::to_string(offset));
    for (const Piece& piece : pieces) {
        if (crc32c(piece.target, piece.length) != piece.crc)
            throw StreamError(file->path() + ": the checksum of the " + std::to_string(piece.length) +
                              " bytes at offset " + std::to_string(piece.offset) +
                              " does not match: the store is damaged; run `sti verify`");
    }
}

}  // namespace sti
