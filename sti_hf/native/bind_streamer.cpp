#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>
#include <unistd.h>

#include <memory>

#include "arrays.h"
#include "bindings.h"
#include "records.h"
#include "streamer.h"

namespace sti {
namespace {

using Moments = nb::ndarray<const double, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using OutcomeArray = nb::ndarray<nb::numpy, uint8_t, nb::ndim<1>>;

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

// Shared with the run that reads into them, which lets them go where Python's lock is not held.
RunBuffers run_buffers(nb::sequence objects) {
    struct Held {
        HeldBuffers<Bytes> arrays;
        Buffers regions;
    };
    HeldBuffers<Bytes> arrays(objects, "a writable uint8 array");
    Buffers regions = arrays.regions();
    const std::shared_ptr<Held> held(new Held{std::move(arrays), std::move(regions)}, [](Held* let_go) {
        nb::gil_scoped_acquire acquired;
        delete let_go;
    });
    return RunBuffers(held, &held->regions);
}

class PyStreamer {
public:
    PyStreamer(const std::vector<std::string>& paths, bool direct, int threads, double rate_limit)
        : threads_(threads), rate_limit_(rate_limit) {
        if (threads < 1) throw std::invalid_argument("threads must be at least 1");
        files_ = std::make_shared<const Files>(open_files(paths, direct));
        streamer_.reset(new Streamer(*files_, threads, rate_limit));
    }

    // Of the parent's object this uses only what changes under Python's lock, which the child has.
    PyStreamer* for_child() const {
        if (!files_) throw std::runtime_error("the streamer is closed");
        return new PyStreamer(files_, threads_, rate_limit_);
    }

    void start(nb::sequence buffers, nb::handle requests, nb::handle pieces) {
        const Records<RequestRow> request_rows(requests, "requests");
        const Records<PieceRow> piece_rows(pieces, "pieces");
        RunBuffers held = run_buffers(buffers);
        nb::gil_scoped_release released;
        streamer_->start(std::move(held), request_rows.data(), request_rows.size(), piece_rows.data(),
                         piece_rows.size());
    }

    void set_latest(nb::handle latest) {
        const auto moments = as_array<Moments>(latest, "latest", "a float64 array [n]");
        nb::gil_scoped_release released;
        streamer_->set_latest(moments.data(), moments.shape(0));
    }

    double wait(int64_t step) {
        const auto begin = std::chrono::steady_clock::now();
        while (!wait_released(step))
            if (PyErr_CheckSignals() != 0) throw nb::python_error();
        return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    }

    bool wait_for(int64_t step, double seconds) {
        if (!(seconds >= 0 && seconds <= 1)) throw std::invalid_argument("seconds must be 0 to 1");
        return streamer_->wait(step, std::chrono::milliseconds(static_cast<int64_t>(seconds * 1e3)));
    }

    void release(int64_t step) { streamer_->release(step); }
    void cancel() { streamer_->cancel(); }

    void close() {
        {
            nb::gil_scoped_release released;
            streamer_->close();
        }
        files_.reset();  // nothing reads them now
    }

    nb::object timings() {
        std::vector<Timing> timings;
        {
            nb::gil_scoped_release released;
            timings = streamer_->timings();
        }
        return to_array(timings);
    }

    OutcomeArray outcomes() {
        auto outcomes = std::make_unique<std::vector<Outcome>>();
        {
            nb::gil_scoped_release released;
            *outcomes = streamer_->outcomes();
        }
        const auto data = reinterpret_cast<uint8_t*>(outcomes->data());
        const size_t size = outcomes->size();
        const auto let_go = [](void* memory) noexcept { delete static_cast<std::vector<Outcome>*>(memory); };
        nb::capsule owner(outcomes.release(), let_go);
        return OutcomeArray(data, {size}, owner);
    }

    uint64_t bytes_read() const { return streamer_->bytes_read(); }

    std::vector<bool> direct() const {
        std::vector<bool> direct;
        if (files_)
            for (const auto& file : *files_) direct.push_back(file->direct());
        return direct;
    }

private:
    PyStreamer(std::shared_ptr<const Files> files, int threads, double rate_limit)
        : threads_(threads), rate_limit_(rate_limit), files_(std::move(files)),
          streamer_(new Streamer(*files_, threads, rate_limit)) {}

    bool wait_released(int64_t step) {
        nb::gil_scoped_release released;
        return streamer_->wait(step, SIGNAL_INTERVAL);
    }

    const int threads_;
    const double rate_limit_;
    std::shared_ptr<const Files> files_;
    std::unique_ptr<Streamer, DeleteInOwnProcess> streamer_;
};

constexpr const char* STREAMER_DOC = R"(Reads pieces of files ahead of compute, in order, on threads of its own.

Args:
    paths: Files to read. They are opened once: it does not matter to the streamer if they are moved or replaced.
    direct: Read past the page cache where the file system allows it; elsewhere, and with False, reads are
        buffered and the pages are dropped after each read.
    threads: Reads under way at once.
    rate_limit: Bytes per second that the disk is made to look like, 0 for as fast as it is; for benchmarks.

A forked child must make its own, with `for_child`. Methods may be called from any thread. When nothing has
been started or released for a tenth of a second, memory that the process has freed goes back to the system
(glibc).

Raises:
    OSError: A file cannot be opened, or the system has no more threads.)";

constexpr const char* START_DOC = R"(Start reading.

Args:
    buffers: 1-D uint8 arrays or tensors to read into, in which the locations are. Kept alive until the next
        `start` or `close`.
    requests: `REQUEST` `[n]`, in the order in which to read.
    pieces: `PIECE` `[k]`, for one request after the other. A piece is checked with the last request that reads
        a part of it: it may reach into requests right before that one, of the same step, that continue each
        other upwards or downwards, in the file and in memory.

Raises:
    TypeError: An array has another dtype, or is not contiguous.
    ValueError: A record makes no sense or points outside the buffers.
    RuntimeError: The streamer is still reading, or closed.)";

constexpr const char* FOR_CHILD_DOC = R"(A streamer for a forked child, which has this one but not its threads.

It has threads of its own and reads the same open files, wherever their paths lead by now. Of this streamer,
which may be in the midst of something, nothing else is used.

Raises:
    OSError: The system has no more threads.
    RuntimeError: The streamer is closed.)";

constexpr const char* OUTCOMES_DOC = R"(What became of each request of the last run: uint8 `[n]`, values of `Outcome`.

Of those that were checked this stays true after a cancel, and where another failed.)";

constexpr const char* SET_LATEST_DOC = R"(Say when each request of this run must have begun at the latest.

A request that is late when its turn comes is given up, and with it those of its step that follow it: they
are never read, and nobody waits for them. One that has begun is read to its end. Before, and with infinity,
there is no limit.

Args:
    latest: float64 `[n]`, one for each request, on the clock of `time.perf_counter`.

Raises:
    ValueError: There are not as many as requests.)";

constexpr const char* WAIT_FOR_DOC = R"(Wait for a step at most so long (0 to 1, in whole milliseconds).

Returns whether all its requests are read and checked, or given up. Raises as `wait`.)";

constexpr const char* WAIT_DOC = R"(Wait until all requests of a step are read and checked, or given up; return the seconds waited.

Raises:
    StreamError: A request of this step or of one before it failed: the file is cut short, damaged or
        unreadable.
    Cancelled: The run was cancelled.)";

}  // namespace

void bind_streamer(nb::module_& module) {
    using namespace nb::literals;
    using Release = nb::call_guard<nb::gil_scoped_release>;
    module.def("evict", evict, "path"_a, Release(),
               "Drop a file's clean pages from the page cache, so that the next read comes from the disk.");
    nb::class_<PyStreamer>(module, "Streamer", STREAMER_DOC)
        .def(nb::init<const std::vector<std::string>&, bool, int, double>(), "paths"_a, nb::kw_only(),
             "direct"_a = true, "threads"_a = 1, "rate_limit"_a = 0.0,
             nb::sig("def __init__(self, paths: Sequence[str], *, direct: bool = True, threads: int = 1, "
                     "rate_limit: float = 0.0) -> None"))
        .def("for_child", &PyStreamer::for_child, nb::sig("def for_child(self) -> Streamer"), FOR_CHILD_DOC)
        .def("start", &PyStreamer::start, "buffers"_a, "requests"_a, "pieces"_a,
             nb::sig("def start(self, buffers: Sequence[NDArray[np.uint8] | torch.Tensor], "
                     "requests: NDArray[np.void], pieces: NDArray[np.void]) -> None"),
             START_DOC)
        .def("set_latest", &PyStreamer::set_latest, "latest"_a,
             nb::sig("def set_latest(self, latest: NDArray[np.float64]) -> None"), SET_LATEST_DOC)
        .def("wait", &PyStreamer::wait, "step"_a, WAIT_DOC)
        .def("wait_for", &PyStreamer::wait_for, "step"_a, "seconds"_a, Release(), WAIT_FOR_DOC)
        .def("release", &PyStreamer::release, "step"_a, Release(),
             "Say that the staging memory of this step may be written again.")
        .def("cancel", &PyStreamer::cancel, Release(),
             "End the run. When this returns, nothing writes to the buffers.")
        .def("close", &PyStreamer::close,
             "Cancel, end the threads, and let go of files and buffers. The streamer cannot be started again.")
        .def("timings", &PyStreamer::timings, nb::sig("def timings(self) -> NDArray[np.void]"),
             "`TIMING` `[n]`: when each request of the last run began and was checked.")
        .def("outcomes", &PyStreamer::outcomes, nb::sig("def outcomes(self) -> NDArray[np.uint8]"), OUTCOMES_DOC)
        .def_prop_ro("bytes_read", &PyStreamer::bytes_read, "Bytes read since `start`.")
        .def_prop_ro("direct", &PyStreamer::direct, "For each file, whether direct IO is in use.");
}

}  // namespace sti
