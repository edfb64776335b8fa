#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>
#include <unistd.h>

#include <memory>
#include <system_error>

#include "arrays.h"
#include "bindings.h"
#include "streamer.h"

namespace sti {
namespace {

using RequestArray = nb::ndarray<const int64_t, nb::shape<-1, 7>, nb::c_contig, nb::device::cpu>;
using PieceArray = nb::ndarray<const int64_t, nb::shape<-1, 4>, nb::c_contig, nb::device::cpu>;
using Moments = nb::ndarray<const double, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using TimingArray = nb::ndarray<nb::numpy, double, nb::ndim<2>>;

constexpr std::chrono::milliseconds SIGNAL_INTERVAL{100};

// A forked child has the object but not its threads: there it is left alone.
struct DeleteInOwnProcess {
    void operator()(Streamer* streamer) const {
        if (streamer->process() == getpid()) {
            nb::gil_scoped_release released;
            delete streamer;
        }
    }
};

class PyStreamer {
public:
    PyStreamer(const std::vector<std::string>& paths, nb::sequence buffers, bool direct, int threads, double rate_limit)
        : held_(buffers, "a writable uint8 array") {
        if (threads < 1) throw std::invalid_argument("threads must be at least 1");
        streamer_.reset(new Streamer(paths, held_.regions(), direct, threads, rate_limit));
    }

    void start(nb::handle requests, nb::handle pieces) {
        const auto rows = as_array<RequestArray>(requests, "requests", "an int64 array [n, 7]");
        const auto piece_rows = as_array<PieceArray>(pieces, "pieces", "an int64 array [k, 4]");
        nb::gil_scoped_release released;
        streamer_->start(reinterpret_cast<const RequestRow*>(rows.data()), rows.shape(0),
                         reinterpret_cast<const PieceRow*>(piece_rows.data()), piece_rows.shape(0));
    }

    void set_latest(nb::handle latest) {
        const auto moments = as_array<Moments>(latest, "latest", "a float64 array [n]");
        nb::gil_scoped_release released;
        streamer_->set_latest(moments.data(), moments.shape(0));
    }

    double wait(int64_t group) {
        const auto begin = std::chrono::steady_clock::now();
        while (!wait_released(group))
            if (PyErr_CheckSignals() != 0) throw nb::python_error();
        return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    }

    bool wait_for(int64_t group, double seconds) {
        if (!(seconds >= 0 && seconds <= 1)) throw std::invalid_argument("seconds must be 0 to 1");
        return streamer_->wait(group, std::chrono::milliseconds(static_cast<int64_t>(seconds * 1e3)));
    }

    bool ready(int64_t group) { return streamer_->ready(group); }
    void release(int64_t group) { streamer_->release(group); }
    void cancel() { streamer_->cancel(); }
    void close() { streamer_->close(); }
    uint64_t bytes_read() const { return streamer_->bytes_read(); }
    std::vector<bool> direct() { return streamer_->direct(); }

    TimingArray timings() {
        auto* timings = new std::vector<Timing>(streamer_->timings());
        nb::capsule owner(timings, [](void* memory) noexcept { delete static_cast<std::vector<Timing>*>(memory); });
        return TimingArray(timings->data(), {timings->size(), 2}, owner);
    }

private:
    bool wait_released(int64_t group) {
        nb::gil_scoped_release released;
        return streamer_->wait(group, SIGNAL_INTERVAL);
    }

    HeldBuffers<Bytes> held_;
    std::unique_ptr<Streamer, DeleteInOwnProcess> streamer_;
};

void raise_os_error(const std::exception_ptr& error, void*) {
    try {
        std::rethrow_exception(error);
    } catch (const std::system_error& caught) {
        std::string path = caught.what();  // "<path>: <meaning of errno>"
        path.resize(path.size() - std::min(path.size(), caught.code().message().size() + 2));
        errno = caught.code().value();
        PyErr_SetFromErrnoWithFilename(PyExc_OSError, path.c_str());
    }
}

constexpr const char* STREAMER_DOC = R"(Reads pieces of files ahead of compute, in order, on threads of its own.

Args:
    paths: Files to read.
    buffers: 1-D uint8 arrays or tensors to read into; kept alive. *Locations* in them are `buffer_index <<
        56 | offset`.
    direct: Read past the page cache where the file system allows it; elsewhere, and with False, reads are
        buffered and the pages are dropped after each read.
    threads: Reads under way at once.
    rate_limit: Bytes per second that the disk is made to look like, 0 for as fast as it is; for benchmarks.

A forked child must make its own. Methods may be called from any thread. When nothing has been started or
released for a tenth of a second, memory that the process has freed goes back to the system (glibc).

Raises:
    OSError: A file cannot be opened.)";

constexpr const char* START_DOC = R"(Start reading.

Args:
    requests: int64 `[n, 7]`, in the order in which to read: index of the file; offset in it and length,
        multiples of 4096 (the last block may be cut by the end of the file); location to read to, aligned
        to 4096 bytes in memory where reads are direct; group; how many groups (all from the first on) must
        have been released before this read may begin; number of pieces.
    pieces: int64 `[k, 4]`, for one request after the other: location, length, CRC-32C, offset in the file. A
        piece is checked with the last request that reads a part of it: it may reach into requests right before that
        one, of the same group, that continue each other upwards or downwards, in the file and in memory.

Raises:
    ValueError: A row makes no sense or points outside the buffers.
    RuntimeError: The streamer is still reading, or closed.)";

constexpr const char* SET_LATEST_DOC = R"(Say when each request of this run must have begun at the latest.

A request that is late when its turn comes is given up, and with it those of its group that follow it: they are
never read, and nobody waits for them. One that has begun is read to its end. Before, and with infinity, there
is no limit.

Args:
    latest: float64 `[n]`, one for each request, on the clock of `time.perf_counter`.

Raises:
    ValueError: There are not as many as requests.)";

constexpr const char* WAIT_FOR_DOC = R"(Wait for a group at most so long (0 to 1, in whole milliseconds).

Returns whether all its requests are read and checked, or given up. Raises as `wait`.)";

constexpr const char* WAIT_DOC = R"(Wait until all requests of a group are read and checked, or given up; return the seconds waited.

Raises:
    StreamError: A request of this group or of one before it failed: the file is cut short, damaged or
        unreadable.
    Cancelled: The run was cancelled.)";

}  // namespace

void bind_streamer(nb::module_& module) {
    using namespace nb::literals;
    using Release = nb::call_guard<nb::gil_scoped_release>;
    nb::register_exception_translator(raise_os_error);
    nb::exception<StreamError>(module, "StreamError", PyExc_RuntimeError).doc() =
        "A read failed, or what was read is not what was written.";
    nb::exception<Cancelled>(module, "Cancelled", PyExc_RuntimeError).doc() = "The run waited for was cancelled.";
    module.def("evict", evict, "path"_a, Release(),
               "Drop a file's clean pages from the page cache, so that the next read comes from the disk.");
    nb::class_<PyStreamer>(module, "Streamer", STREAMER_DOC)
        .def(nb::init<const std::vector<std::string>&, nb::sequence, bool, int, double>(), "paths"_a, "buffers"_a,
             nb::kw_only(), "direct"_a = true, "threads"_a = 1, "rate_limit"_a = 0.0,
             nb::sig("def __init__(self, paths: Sequence[str], buffers: Sequence[NDArray[np.uint8] | torch.Tensor], *, "
                     "direct: bool = True, threads: int = 1, rate_limit: float = 0.0) -> None"))
        .def("start", &PyStreamer::start, "requests"_a, "pieces"_a,
             nb::sig("def start(self, requests: NDArray[np.int64], pieces: NDArray[np.int64]) -> None"), START_DOC)
        .def("set_latest", &PyStreamer::set_latest, "latest"_a,
             nb::sig("def set_latest(self, latest: NDArray[np.float64]) -> None"), SET_LATEST_DOC)
        .def("wait", &PyStreamer::wait, "group"_a, WAIT_DOC)
        .def("wait_for", &PyStreamer::wait_for, "group"_a, "seconds"_a, Release(), WAIT_FOR_DOC)
        .def("ready", &PyStreamer::ready, "group"_a, Release(), "Whether `wait` would return or raise at once.")
        .def("release", &PyStreamer::release, "group"_a, Release(),
             "Say that the staging memory of this group may be written again.")
        .def("cancel", &PyStreamer::cancel, Release(),
             "End the run. When this returns, nothing writes to the buffers.")
        .def("close", &PyStreamer::close, Release(), "Cancel, and end the threads. The streamer cannot be used again.")
        .def("timings", &PyStreamer::timings, nb::sig("def timings(self) -> NDArray[np.float64]"),
             "float64 `[n, 2]`: when each request began and was checked, on the clock of `time.perf_counter`; NaN\n"
             "where it has not.")
        .def_prop_ro("bytes_read", &PyStreamer::bytes_read, "Bytes read since `start`.")
        .def_prop_ro("direct", &PyStreamer::direct, "For each file, whether direct IO is in use.");
}

}  // namespace sti
