// Convolutions of channels-last float32 images by oneDNN, as an XLA FFI handler.
//
// A convolution has three tensors: the image `lhs` [B, *space, C], the kernel `rhs`
// [*window, C / groups, O] and the output `out` [B, *space, O]. The handler computes any one of
// them from the other two, which are its operands in this order: the output, the gradient of the
// image or the gradient of the kernel. With `stacked`, all three have a leading axis of networks
// and the handler computes one convolution per network. With `bfloat16` it rounds its operands to
// that type first; sums and results are float32.
#include <omp.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <shared_mutex>
#include <stdexcept>
#include <string>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "oneapi/dnnl/dnnl.hpp"
#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;
using Dims = dnnl::memory::dims;
using Span = ffi::Span<const int64_t>;
using dnnl::memory;

enum Tensor : int64_t { kLhs, kRhs, kOut };

// What determines a plan. Shapes are XLA's, of a single network.
struct Geometry {
  int64_t target, groups, threads;
  bool bfloat16;
  Dims lhs, rhs, out, strides, dilation, low, high;

  auto tie() const {
    return std::tie(target, groups, threads, bfloat16, lhs, rhs, out, strides,
                    dilation, low, high);
  }
  bool operator<(const Geometry& other) const { return tie() < other.tie(); }
};

// Neither is ever destroyed: XLA's threads may outlive static destructors.
const dnnl::engine& engine() {
  static const auto& engine = *new dnnl::engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

dnnl::stream& stream() {
  thread_local auto& stream = *new dnnl::stream(engine());
  return stream;
}

// Memory of the calling thread, kept between calls: fresh pages would cost more than the work.
char* workspace(size_t bytes) {
  struct Free {
    void operator()(char* data) const { std::free(data); }
  };
  constexpr size_t kPage = 4096;
  thread_local std::unique_ptr<char, Free> data;
  thread_local size_t size = 0;
  if (bytes > size) {
    size = 0;
    data.reset();
    size_t rounded = (bytes + kPage - 1) / kPage * kPage;
    data.reset(static_cast<char*>(std::aligned_alloc(kPage, rounded)));
    if (!data) throw std::bad_alloc();
    size = rounded;
  }
  return data.get();
}

// [B, *space, C] as oneDNN counts dimensions: [B, C, *space].
Dims image_dims(const Dims& image) {
  Dims dims{image.front(), image.back()};
  dims.insert(dims.end(), image.begin() + 1, image.end() - 1);
  return dims;
}

// [*window, C / groups, O] as [groups, O / groups, C / groups, *window], groups only if many.
Dims kernel_dims(const Dims& kernel, int64_t groups) {
  Dims dims;
  if (groups > 1) dims.push_back(groups);
  dims.push_back(kernel.back() / groups);
  dims.push_back(kernel[kernel.size() - 2]);
  dims.insert(dims.end(), kernel.begin(), kernel.end() - 2);
  return dims;
}

// A tensor of a plan: as XLA has it, and as oneDNN wants it.
struct Port {
  int arg;
  memory::desc given, own;
  dnnl::primitive reorder;  // from one to the other, where they differ
  memory::desc scratch;
  size_t offset = 0;  // of `own` in the workspace
};

size_t aligned(size_t bytes) { return (bytes + 63) / 64 * 64; }

// oneDNN's program for a convolution: immutable, so that many threads may run it at once.
class Plan {
 public:
  explicit Plan(const Geometry& g) : target_(g.target) {
    using tag = memory::format_tag;
    static constexpr tag kImage[] = {tag::nwc, tag::nhwc, tag::ndhwc};
    static constexpr tag kKernel[] = {tag::wio, tag::hwio, tag::dhwio};
    static constexpr tag kGrouped[] = {tag::wigo, tag::hwigo, tag::dhwigo};
    const size_t space = g.lhs.size() - 3;
    const tag kernel_tag = g.groups > 1 ? kGrouped[space] : kKernel[space];
    const Dims shapes[] = {image_dims(g.lhs), kernel_dims(g.rhs, g.groups), image_dims(g.out)};
    const tag tags[] = {kImage[space], kernel_tag, kImage[space]};
    memory::desc wanted[3];  // a kernel in whatever layout oneDNN likes
    for (int i : {kLhs, kRhs, kOut}) {
      const bool half = g.bfloat16 && i != target_;
      const auto type = half ? memory::data_type::bf16 : memory::data_type::f32;
      ports_[i].given = memory::desc(shapes[i], memory::data_type::f32, tags[i]);
      wanted[i] = memory::desc(shapes[i], type, i == kRhs ? tag::any : tags[i]);
    }
    dnnl::primitive_attr attr;  // scratch memory of the caller: plans are shared by threads
    attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    Dims dilation = g.dilation;
    for (auto& d : dilation) d -= 1;
    const memory::desc &lhs = wanted[kLhs], &rhs = wanted[kRhs], &out = wanted[kOut];
    const auto direct = dnnl::algorithm::convolution_direct;
    const auto forward = [&](const memory::desc& image, const memory::desc& kernel) {
      return dnnl::convolution_forward::primitive_desc(
          engine(), dnnl::prop_kind::forward_training, direct, image, kernel, out, g.strides,
          dilation, g.low, g.high, attr);
    };
    // A gradient's forward pass, a hint to oneDNN, has operands of one type.
    const memory::desc lhs_hint(shapes[kLhs], out.get_data_type(), tags[kLhs]);
    const memory::desc rhs_hint(shapes[kRhs], out.get_data_type(), tag::any);
    if (target_ == kOut) {
      take(forward(lhs, rhs), DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DST, attr);
    } else if (target_ == kLhs) {
      take(dnnl::convolution_backward_data::primitive_desc(
               engine(), direct, lhs, rhs, out, g.strides, dilation, g.low, g.high,
               forward(lhs_hint, rhs), attr),
           DNNL_ARG_DIFF_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DIFF_DST, attr);
    } else {
      take(dnnl::convolution_backward_weights::primitive_desc(
               engine(), direct, lhs, rhs, out, g.strides, dilation, g.low, g.high,
               forward(lhs, rhs_hint), attr),
           DNNL_ARG_SRC, DNNL_ARG_DIFF_WEIGHTS, DNNL_ARG_DIFF_DST, attr);
    }
  }

  // Computes the target's data from the others', in the order lhs, rhs, out.
  void run(float* const (&data)[3]) const {
    char* const space = workspace(bytes_);
    const auto given = [&](int i) { return memory(ports_[i].given, engine(), data[i]); };
    const auto own = [&](int i) {
      const bool converted = static_cast<bool>(ports_[i].reorder);
      void* const at = converted ? static_cast<void*>(space + ports_[i].offset) : data[i];
      return memory(ports_[i].own, engine(), at);
    };
    const auto reorder = [&](int i, const memory& from, const memory& to) {
      const memory scratch(ports_[i].scratch, engine(), space);
      ports_[i].reorder.execute(
          stream(),
          {{DNNL_ARG_FROM, from}, {DNNL_ARG_TO, to}, {DNNL_ARG_SCRATCHPAD, scratch}});
    };
    std::unordered_map<int, memory> arguments{
        {DNNL_ARG_SCRATCHPAD, memory(scratch_, engine(), space)}};
    for (int i : {kLhs, kRhs, kOut}) {
      arguments.emplace(ports_[i].arg, own(i));
      if (ports_[i].reorder && i != target_) reorder(i, given(i), own(i));
    }
    convolution_.execute(stream(), arguments);
    if (ports_[target_].reorder) reorder(target_, own(target_), given(target_));
    stream().wait();
  }

 private:
  void take(const dnnl::primitive_desc& chosen, int lhs_arg, int rhs_arg, int out_arg,
            const dnnl::primitive_attr& attr) {
    convolution_ = dnnl::primitive(chosen);
    scratch_ = chosen.scratchpad_desc();
    const int args[] = {lhs_arg, rhs_arg, out_arg};
    size_t scratch_bytes = scratch_.get_size(), own_bytes = 0;
    for (int i : {kLhs, kRhs, kOut}) {
      Port& port = ports_[i];
      port.arg = args[i];
      port.own = chosen.query_md(dnnl::query::exec_arg_md, port.arg);
      if (port.own == port.given) continue;
      const bool back = i == target_;
      const dnnl::reorder::primitive_desc reorder(engine(), back ? port.own : port.given,
                                                  engine(), back ? port.given : port.own, attr);
      port.reorder = dnnl::reorder(reorder);
      port.scratch = reorder.scratchpad_desc();
      port.offset = own_bytes;
      own_bytes += aligned(port.own.get_size());
      scratch_bytes = std::max(scratch_bytes, port.scratch.get_size());
    }
    // Scratch memory, which all steps use in turn, comes before the converted tensors.
    for (Port& port : ports_) port.offset += aligned(scratch_bytes);
    bytes_ = aligned(scratch_bytes) + own_bytes;
  }

  int64_t target_;
  dnnl::primitive convolution_;
  memory::desc scratch_;
  Port ports_[3];
  size_t bytes_ = 0;
};

// The plan for a geometry, made when it is first asked for.
const Plan& plan_for(const Geometry& geometry) {
  static auto& mutex = *new std::shared_mutex;
  static auto& plans = *new std::map<Geometry, std::unique_ptr<const Plan>>;
  {
    std::shared_lock lock(mutex);
    if (auto found = plans.find(geometry); found != plans.end()) return *found->second;
  }
  auto made = std::make_unique<const Plan>(geometry);
  std::unique_lock lock(mutex);
  return *plans.try_emplace(geometry, std::move(made)).first->second;
}

// OpenMP's number of threads for calls from this thread, while it lives.
class Threads {
 public:
  explicit Threads(int count) : before_(omp_get_max_threads()) { omp_set_num_threads(count); }
  ~Threads() { omp_set_num_threads(before_); }

 private:
  int before_;
};

using Buffer = ffi::Buffer<ffi::F32>;

ffi::Error convolve(Buffer a, Buffer b, ffi::Result<Buffer> result, int64_t target,
                    bool stacked, bool bfloat16, int64_t groups, int64_t threads, Span strides,
                    Span dilation, Span low, Span high) try {
  const auto dims = [](Span span, int skip = 0) { return Dims(span.begin() + skip, span.end()); };
  Buffer* const tensors[] = {target == kLhs ? &*result : &a,
                             target == kRhs ? &*result : target == kLhs ? &a : &b,
                             target == kOut ? &*result : &b};
  const size_t rank = strides.size() + 2;
  int64_t networks = stacked ? result->dimensions()[0] : 1;
  for (Buffer* tensor : tensors) {
    const Span d = tensor->dimensions();
    if (rank < 3 || rank > 5 || d.size() != rank + stacked || (stacked && d[0] != networks)) {
      return ffi::Error::InvalidArgument("okdph_convolution: the shapes do not fit together");
    }
  }
  const Threads own(threads);
  const Plan& plan = plan_for({target, groups, threads, bfloat16,
                               dims(tensors[0]->dimensions(), stacked),
                               dims(tensors[1]->dimensions(), stacked),
                               dims(tensors[2]->dimensions(), stacked), dims(strides),
                               dims(dilation), dims(low), dims(high)});
  for (int64_t n = 0; n < networks; ++n) {
    const auto network = [&](Buffer* tensor) {
      return tensor->typed_data() + n * (tensor->element_count() / networks);
    };
    plan.run({network(tensors[0]), network(tensors[1]), network(tensors[2])});
  }
  return ffi::Error::Success();
} catch (const std::exception& error) {
  return ffi::Error::Internal(std::string("oneDNN's convolution: ") + error.what());
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(okdph_convolution, convolve,
                              ffi::Ffi::Bind()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Ret<Buffer>()
                                  .Attr<int64_t>("target")
                                  .Attr<bool>("stacked")
                                  .Attr<bool>("bfloat16")
                                  .Attr<int64_t>("groups")
                                  .Attr<int64_t>("threads")
                                  .Attr<Span>("strides")
                                  .Attr<Span>("dilation")
                                  .Attr<Span>("low")
                                  .Attr<Span>("high"));

extern "C" const char* okdph_onednn_version() {
  static const std::string& version = *new std::string([] {
    const dnnl_version_t* v = dnnl_version();
    return std::to_string(v->major) + "." + std::to_string(v->minor) + "." +
           std::to_string(v->patch);
  }());
  return version.c_str();
}
