// y = x · w for few rows of x: a product that is bound by reading the weights, which are read once.
//
// Weights lie as [in, out] rows ("across": every matrix of a layer) or as [out, in] rows ("along": an
// embedding that is also the head). They are float32, bfloat16, or int8 with a factor for each output;
// sums are float32. Row m of y is the same to the last bit however many rows x has: each element is one
// chain of multiply-adds in an order that only the shape of the weights decides.
//
// Compiled once for each type of weights (SDSL_FLOAT32, SDSL_BFLOAT16, SDSL_INT8), when it is needed.
// Vectors are as wide as those of the processor that it is compiled for.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#if defined(__AVX__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

// Sums live in registers only if the loops over them are unrolled early.
#define UNROLL _Pragma("GCC unroll 8")

namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16, kRegisters = 32;
#elif defined(__AVX__)
constexpr int kLanes = 8, kRegisters = 16;
#elif defined(__aarch64__)
constexpr int kLanes = 4, kRegisters = 32;
#else
constexpr int kLanes = 4, kRegisters = 16;
#endif

typedef float Vector __attribute__((vector_size(kLanes * sizeof(float))));
typedef uint16_t Halves __attribute__((vector_size(kLanes * sizeof(uint16_t))));
typedef uint32_t Words __attribute__((vector_size(kLanes * sizeof(uint32_t))));
typedef int8_t Bytes __attribute__((vector_size(kLanes * sizeof(int8_t))));
typedef int32_t Integers __attribute__((vector_size(kLanes * sizeof(int32_t))));

// Rows of x taken at once, and how many vectors of sums for each leave room in the registers for the
// weights and for one value of x.
constexpr int kRows = kRegisters == 32 ? 8 : 6;
constexpr int Vectors(int rows) { return std::min(4, (kRegisters - 1) / (rows + 1)); }
// Rows of the weights that are added up before y is written, and columns that go through all rows
// together: their part of y and of the weights stays in the first caches.
constexpr int64_t kDepth = 4;
constexpr int64_t kPanel = 768;
// [out, in] weights that stay in the first cache for all rows of x.
constexpr int64_t kOutputs = 12;
// A thread's share is worth waking it for from this many weights on.
constexpr int64_t kShare = 1 << 16;

inline Vector Load(const float* p) {
  Vector v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline Vector Load(const uint16_t* p) {  // bfloat16: the upper half of a float32
  Halves h;
  std::memcpy(&h, p, sizeof h);
  Words w = __builtin_convertvector(h, Words) << 16;
  Vector v;
  std::memcpy(&v, &w, sizeof v);
  return v;
}

#if defined(SDSL_INT8)
// GCC 12 widens a vector of bytes one by one unless told the instruction.
inline Vector Load(const int8_t* p) {
#if defined(__AVX512F__)
  __m128i b;
  std::memcpy(&b, p, sizeof b);
  return (Vector)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(b));
#elif defined(__AVX2__)
  int64_t b;
  std::memcpy(&b, p, sizeof b);
  return (Vector)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_cvtsi64_si128(b)));
#else
  Bytes b;
  std::memcpy(&b, p, sizeof b);
  return __builtin_convertvector(__builtin_convertvector(b, Integers), Vector);
#endif
}
#endif

// a · b + c, fused wherever the processor can. Left to themselves, compilers fuse some loops and not
// others, and the bits of a row would depend on how many rows there are.
inline Vector MultiplyAdd(Vector a, Vector b, Vector c) {
#if defined(__AVX512F__)
  return (Vector)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (Vector)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
  return (Vector)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}

inline void Store(float* p, Vector v) { std::memcpy(p, &v, sizeof v); }

inline float Scalar(float w) { return w; }
inline float Scalar(int8_t w) { return w; }
inline float Scalar(uint16_t w) {
  uint32_t bits = uint32_t{w} << 16;
  float v;
  std::memcpy(&v, &bits, sizeof v);
  return v;
}

// ---- weights [in, out] ------------------------------------------------------------------------

// `Columns` vectors of y for `Rows` rows of x, over `depth` rows of the weights. x lies as
// [in, Rows], so that what is multiplied together lies together.
template <int Rows, int Columns, typename W>
inline void AcrossTile(const float* __restrict x, const W* __restrict w, int64_t stride,
                       float* __restrict y, int64_t depth, bool first) {
  Vector sum[Rows][Columns];
  UNROLL for (int m = 0; m < Rows; ++m)
    UNROLL for (int c = 0; c < Columns; ++c)
      sum[m][c] = first ? Vector{} : Load(y + m * stride + c * kLanes);
  for (int64_t d = 0; d < depth; ++d) {
    Vector weight[Columns];
    UNROLL for (int c = 0; c < Columns; ++c) weight[c] = Load(w + d * stride + c * kLanes);
    // The same columns of the next rows; beyond the last row it does no harm.
    UNROLL for (int c = 0; c < Columns; ++c)
      __builtin_prefetch(w + (d + kDepth) * stride + c * kLanes, 0, 3);
    UNROLL for (int m = 0; m < Rows; ++m)
      UNROLL for (int c = 0; c < Columns; ++c)
        sum[m][c] = MultiplyAdd(x[d * Rows + m] - Vector{}, weight[c], sum[m][c]);
  }
  UNROLL for (int m = 0; m < Rows; ++m)
    UNROLL for (int c = 0; c < Columns; ++c) Store(y + m * stride + c * kLanes, sum[m][c]);
}

template <int Rows, typename W>
void AcrossRows(const float* x, const W* w, float* y, int64_t out, int64_t begin, int64_t end,
                int64_t depth, bool first) {
  constexpr int kColumns = Vectors(Rows);
  int64_t f = begin;
  for (; f + kColumns * kLanes <= end; f += kColumns * kLanes)
    AcrossTile<Rows, kColumns>(x, w + f, out, y + f, depth, first);
  for (; f + kLanes <= end; f += kLanes)
    AcrossTile<Rows, 1>(x, w + f, out, y + f, depth, first);
  for (; f < end; ++f)
    for (int m = 0; m < Rows; ++m) {
      float sum = first ? 0.0f : y[m * out + f];
      for (int64_t d = 0; d < depth; ++d)
        sum = __builtin_fmaf(x[d * Rows + m], Scalar(w[d * out + f]), sum);
      y[m * out + f] = sum;
    }
}

// ---- weights [out, in] ------------------------------------------------------------------------

// The sum of a vector's lanes: its halves are added, and then the halves of the sum.
typedef float Four __attribute__((vector_size(16)));
inline float Sum(Four v) { return (v[0] + v[2]) + (v[1] + v[3]); }

#if defined(__AVX__)
typedef float Eight __attribute__((vector_size(32)));
inline float Sum(Eight v) {
  Four halves[2];
  std::memcpy(halves, &v, sizeof v);
  return Sum(halves[0] + halves[1]);
}
#endif

#if defined(__AVX512F__)
inline float Sum(Vector v) {
  Eight halves[2];
  std::memcpy(halves, &v, sizeof v);
  return Sum(halves[0] + halves[1]);
}
#endif

template <int Rows, int Outputs, typename W>
inline void AlongTile(const float* x, const W* w, float* y, int64_t in, int64_t out) {
  Vector sum[Rows][Outputs] = {};
  int64_t d = 0;
  for (; d + kLanes <= in; d += kLanes) {
    Vector weight[Outputs];
    UNROLL for (int r = 0; r < Outputs; ++r) weight[r] = Load(w + r * in + d);
    UNROLL for (int r = 0; r < Outputs; ++r) __builtin_prefetch(w + (r + Outputs) * in + d, 0, 3);
    UNROLL for (int m = 0; m < Rows; ++m) {
      Vector value = Load(x + m * in + d);
      UNROLL for (int r = 0; r < Outputs; ++r)
        sum[m][r] = MultiplyAdd(value, weight[r], sum[m][r]);
    }
  }
  UNROLL for (int m = 0; m < Rows; ++m)
    UNROLL for (int r = 0; r < Outputs; ++r) {
      float total = Sum(sum[m][r]);
      for (int64_t k = d; k < in; ++k)
        total = __builtin_fmaf(x[m * in + k], Scalar(w[r * in + k]), total);
      y[m * out + r] = total;
    }
}

template <int Rows, typename W>
void AlongRows(const float* x, const W* w, float* y, int64_t in, int64_t out, int64_t begin,
               int64_t end) {
  constexpr int kTogether = Vectors(Rows);
  int64_t f = begin;
  for (; f + kTogether <= end; f += kTogether)
    AlongTile<Rows, kTogether>(x, w + f * in, y + f, in, out);
  for (; f < end; ++f) AlongTile<Rows, 1>(x, w + f * in, y + f, in, out);
}

// ---- both -------------------------------------------------------------------------------------

// Calls f<Rows>(first row) for groups of at most kRows rows, as equal as can be.
template <typename F>
inline void ForRows(int64_t rows, F&& f) {
  const int64_t groups = (rows + kRows - 1) / kRows;
  for (int64_t g = 0, m = 0; g < groups; ++g) {
    const int64_t count = rows / groups + (g < rows % groups);
    switch (count) {
      case 1: f.template operator()<1>(m); break;
      case 2: f.template operator()<2>(m); break;
      case 3: f.template operator()<3>(m); break;
      case 4: f.template operator()<4>(m); break;
      case 5: f.template operator()<5>(m); break;
      case 6: f.template operator()<6>(m); break;
      case 7: f.template operator()<7>(m); break;
      case 8: f.template operator()<8>(m); break;
    }
    m += count;
  }
}

template <typename W>
void Across(const float* x, const W* w, float* y, int64_t rows, int64_t in, int64_t out,
            int64_t begin, int64_t end) {
  if (in == 0)
    for (int64_t m = 0; m < rows; ++m) std::fill(y + m * out + begin, y + m * out + end, 0.0f);
  std::vector<float> packed(rows * in);
  ForRows(rows, [&]<int Rows>(int64_t m) {
    for (int r = 0; r < Rows; ++r)
      for (int64_t d = 0; d < in; ++d) packed[m * in + d * Rows + r] = x[(m + r) * in + d];
  });
  for (int64_t f = begin; f < end; f += kPanel)
    for (int64_t d = 0; d < in; d += kDepth) {
      const int64_t depth = std::min(kDepth, in - d);
      ForRows(rows, [&]<int Rows>(int64_t m) {
        AcrossRows<Rows>(packed.data() + m * in + d * Rows, w + d * out, y + m * out, out, f,
                         std::min(f + kPanel, end), depth, d == 0);
      });
    }
}

template <typename W>
void Along(const float* x, const W* w, float* y, int64_t rows, int64_t in, int64_t out,
           int64_t begin, int64_t end) {
  for (int64_t f = begin; f < end; f += kOutputs)
    ForRows(rows, [&]<int Rows>(int64_t m) {
      AlongRows<Rows>(x + m * in, w, y + m * out, in, out, f, std::min(f + kOutputs, end));
    });
}

// The outputs in one chunk for each thread at most, since narrow ones cost more than an uneven load. The caller
// and the threads of XLA take them as they come, so that the caller waits for chunks that a thread has
// begun, never for a thread that might itself be waiting.
template <typename F>
void Parallel(ffi::ThreadPool& pool, int64_t outputs, int64_t weights, int64_t align, const F& work) {
  const int64_t threads = std::min<int64_t>(pool.num_threads(), weights / kShare);
  if (threads <= 1) return work(int64_t{0}, outputs);
  struct State {
    std::atomic<int64_t> next{0}, done{0};
  };
  auto state = std::make_shared<State>();
  const int64_t size = (outputs + threads * align - 1) / (threads * align) * align;
  const int64_t chunks = (outputs + size - 1) / size;
  const F* job = &work;  // alive while a chunk is left
  auto take = [state, job, size, chunks, outputs] {
    for (int64_t c; (c = state->next.fetch_add(1)) < chunks;) {
      (*job)(c * size, std::min((c + 1) * size, outputs));
      state->done.fetch_add(1, std::memory_order_release);
    }
  };
  for (int64_t t = 1; t < threads; ++t) pool.Schedule(decltype(take)(take));
  take();
  while (state->done.load(std::memory_order_acquire) < chunks) std::this_thread::yield();
}

template <typename W, typename Buffer>
ffi::Error Multiply(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x, Buffer weights,
                    const float* scales, ffi::ResultBuffer<ffi::F32> y, bool along) {
  auto shape = weights.dimensions();
  const int64_t in = along ? shape[1] : shape[0], out = along ? shape[0] : shape[1];
  const int64_t rows = x.dimensions()[0];
  const float* xs = x.typed_data();
  const W* w = reinterpret_cast<const W*>(weights.untyped_data());
  float* ys = y->typed_data();
  Parallel(pool, out, in * out, 64, [=](int64_t begin, int64_t end) {
    if (along)
      Along(xs, w, ys, rows, in, out, begin, end);
    else
      Across(xs, w, ys, rows, in, out, begin, end);
    if (scales != nullptr)
      for (int64_t m = 0; m < rows; ++m)
        for (int64_t f = begin; f < end; ++f) ys[m * out + f] *= scales[f];
  });
  return ffi::Error::Success();
}

#if defined(SDSL_FLOAT32)
ffi::Error Product(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x, ffi::Buffer<ffi::F32> w,
                   ffi::ResultBuffer<ffi::F32> y, bool along) {
  return Multiply<float>(pool, x, w, nullptr, y, along);
}
#elif defined(SDSL_BFLOAT16)
ffi::Error Product(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x, ffi::Buffer<ffi::BF16> w,
                   ffi::ResultBuffer<ffi::F32> y, bool along) {
  return Multiply<uint16_t>(pool, x, w, nullptr, y, along);
}
#else
ffi::Error Product(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x, ffi::Buffer<ffi::S8> w,
                   ffi::Buffer<ffi::F32> scales, ffi::ResultBuffer<ffi::F32> y, bool along) {
  return Multiply<int8_t>(pool, x, w, scales.typed_data(), y, along);
}
#endif

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(SmallMatmul, Product,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
#if defined(SDSL_FLOAT32)
                                  .Arg<ffi::Buffer<ffi::F32>>()
#elif defined(SDSL_BFLOAT16)
                                  .Arg<ffi::Buffer<ffi::BF16>>()
#else
                                  .Arg<ffi::Buffer<ffi::S8>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
#endif
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<bool>("along"));
