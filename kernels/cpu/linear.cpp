#include "kernels/cpu/activation_math.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/vector_math.h"
#include "kernels/cpu/weight_panel.h"

namespace squareq {
namespace {

constexpr std::int64_t kRowsPerTask = 64;  // of gathering and of down-projections

// Tiles that cover a matrix [rows, cols]: wide enough for the matrix product to be fast, enough of them for all
// threads, and small enough that what follows the product finds its tile in the cache.
struct Grid {
  Grid(std::int64_t rows_in, std::int64_t cols_in) : rows(rows_in), cols(cols_in) {
    constexpr std::int64_t kColumns = 256;
    constexpr std::int64_t kFewestRows = 128;
    constexpr std::int64_t kMostRows = 1024;
    constexpr std::int64_t kTasks = 48;
    constexpr std::int64_t kVector = 16;
    if (rows == 0 || cols == 0) return;
    const std::int64_t col_tiles = ceil_div(cols, kColumns);
    col_step = ceil_div(ceil_div(cols, col_tiles), kVector) * kVector;
    cols_count = ceil_div(cols, col_step);
    const std::int64_t wanted = std::max(ceil_div(kTasks, cols_count), ceil_div(rows, kMostRows));
    const std::int64_t row_tiles = std::clamp<std::int64_t>(rows / kFewestRows, 1, wanted);
    row_step = ceil_div(rows, row_tiles);
    rows_count = ceil_div(rows, row_step);
  }
  std::int64_t count() const { return rows_count * cols_count; }

  std::int64_t rows, cols;
  std::int64_t row_step = 0, col_step = 0;
  std::int64_t rows_count = 0, cols_count = 0;
};

struct Tile {
  Tile(const Grid& grid, std::int64_t index)
      : row(index % grid.rows_count * grid.row_step),
        col(index / grid.rows_count * grid.col_step),
        rows(std::min(grid.row_step, grid.rows - row)),
        cols(std::min(grid.col_step, grid.cols - col)) {}

  std::int64_t row, col, rows, cols;
};

std::int64_t rank_sum(std::span<const LoraBranch> lora) {
  std::int64_t sum = 0;
  for (const LoraBranch& branch : lora) sum += branch.rank();
  return sum;
}

void check_lora(std::span<const LoraBranch> lora, const Weight& weight) {
  for (const LoraBranch& branch : lora) {
    require(branch.a.cols == weight.in() && branch.b.cols == branch.rank() && branch.row_begin >= 0 &&
                branch.row_begin + branch.b.rows <= weight.out(),
            "linear: adapter does not fit the layer");
  }
}

// tile += the up-projections of the branches that reach into its columns; u is that of the tile's first row.
void add_up_projections(std::span<const LoraBranch> lora, ConstMatrix u, const Tile& tile, Matrix out) {
  std::int64_t u_begin = 0;
  for (const LoraBranch& branch : lora) {
    const std::int64_t begin = std::max(branch.row_begin, tile.col);
    const std::int64_t end = std::min(branch.row_begin + branch.b.rows, tile.col + tile.cols);
    if (begin < end) {
      gemm({.transpose_b = Transpose::kYes,
            .m = tile.rows,
            .n = end - begin,
            .k = branch.rank(),
            .alpha = branch.scale,
            .a = u.data + u_begin,
            .lda = u.stride,
            .b = branch.b.f32(0, begin - branch.row_begin),
            .ldb = branch.b.row_stride,
            .beta = 1.0F,
            .c = out.data + (begin - tile.col),
            .ldc = out.stride});
    }
    u_begin += branch.rank();
  }
}

// u [n, ranks] = x a^T of each branch in turn.
void project_down(std::span<const LoraBranch> lora, ConstMatrix x, std::int64_t n, Matrix u) {
  std::int64_t u_begin = 0;
  for (const LoraBranch& branch : lora) {
    gemm({.transpose_b = Transpose::kYes,
          .m = n,
          .n = branch.rank(),
          .k = branch.a.cols,
          .a = x.data,
          .lda = x.stride,
          .b = branch.a.f32(),
          .ldb = branch.a.row_stride,
          .c = u.data + u_begin,
          .ldc = u.stride});
    u_begin += branch.rank();
  }
}

// u [n, ranks], rows from `begin` on of `rows` a sample, times the factors of their sample and rank.
void keep_ranks(std::span<const LoraBranch> lora, std::int64_t rows, std::int64_t begin, std::int64_t n, Matrix u) {
  std::int64_t u_begin = 0;
  for (const LoraBranch& branch : lora) {
    for (std::int64_t r = 0; branch.keep && r < n; ++r) {
      const float* keep = branch.keep.f32((begin + r) / rows);
      for (std::int64_t i = 0; i < branch.rank(); ++i) u.row(r)[u_begin + i] *= keep[i];
    }
    u_begin += branch.rank();
  }
}

// du [n, ranks] = scale * dy b of each branch in turn, from the columns of dy that it reaches.
void project_back(std::span<const LoraBranch> lora, ConstMatrix dy, std::int64_t n, Matrix du) {
  std::int64_t u_begin = 0;
  for (const LoraBranch& branch : lora) {
    gemm({.m = n,
          .n = branch.rank(),
          .k = branch.b.rows,
          .alpha = branch.scale,
          .a = dy.data + branch.row_begin,
          .lda = dy.stride,
          .b = branch.b.f32(),
          .ldb = branch.b.row_stride,
          .c = du.data + u_begin,
          .ldc = du.stride});
    u_begin += branch.rank();
  }
}

// tile += du a of all branches, the tile lying in dx; du is that of the tile's first row.
void add_down_gradients(std::span<const LoraBranch> lora, ConstMatrix du, const Tile& tile, Matrix out) {
  std::int64_t u_begin = 0;
  for (const LoraBranch& branch : lora) {
    gemm({.m = tile.rows,
          .n = tile.cols,
          .k = branch.rank(),
          .a = du.data + u_begin,
          .lda = du.stride,
          .b = branch.a.f32() + tile.col,
          .ldb = branch.a.row_stride,
          .beta = 1.0F,
          .c = out.data,
          .ldc = out.stride});
    u_begin += branch.rank();
  }
}

// Up to this many rows, a matrix product would spend most of its time on moving the weights about.
constexpr std::int64_t kFewRows = 4;

// The sum of a[i] * b[i]. More partial sums than lane_sum has, since each would wait for its last addition.
float dot_product(const float* a, const float* b, std::int64_t n) {
  constexpr std::int64_t kLanes = 64;
  float lanes[kLanes] = {};
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (std::int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += a[i + lane] * b[i + lane];
  }
  for (std::int64_t lane = 0; i < n; ++i, ++lane) lanes[lane] += a[i] * b[i];
  return lane_sum(kLanes, [&](std::int64_t lane) { return lanes[lane]; });
}

// out [rows, n] = x W^T of output columns [begin, begin + n). Each row of the weight is read once: it is expanded into
// the nearest cache and meets all rows of x there.
void few_rows_product(ConstMatrix x, std::int64_t rows, const Weight& weight, std::int64_t begin, std::int64_t n,
                      Matrix out, Scratch& memory) {
  for (std::int64_t column = 0; column < n; ++column) {
    const ConstMatrix w = weight_panel(weight, begin + column, 1, 0, weight.in(), memory);
    for (std::int64_t r = 0; r < rows; ++r) out.row(r)[column] = dot_product(x.row(r), w.data, weight.in());
  }
}

// Bias, then what the layer is to write, for row (b, t) of the output; `row` holds its columns [begin, begin + n) of
// the product and may lie in y itself.
void finish_row(const LinearForward& p, const float* bias, std::int64_t b, std::int64_t t, std::int64_t begin,
                std::int64_t n, float* row) {
  if (bias != nullptr) {
    for (std::int64_t c = 0; c < n; ++c) row[c] += bias[begin + c];
  }
  if (p.y && row != p.y.f32(b, t) + begin) std::copy_n(row, n, p.y.f32(b, t) + begin);
  if (p.act) {
    const std::int64_t skip = std::clamp<std::int64_t>(p.gelu_begin - begin, 0, n);
    float* to = p.act.f32(b, t) + (begin - p.gelu_begin);
    for (std::int64_t c = skip; c < n; ++c) to[c] = gelu_tanh(row[c]);
  }
  if (p.sum) {
    const float* gate = p.gate.f32(b) + begin;
    const float* residual = p.residual.f32(b, t) + begin;
    float* to = p.sum.f32(b, t) + begin;
    for (std::int64_t c = 0; c < n; ++c) to[c] = residual[c] + gate[c] * row[c];
  }
}

void check(const LinearForward& p) {
  const std::int64_t out = p.weight.out();
  const auto rows_fit = [&](ConstView v, std::int64_t cols) {
    return !v || (v.batch == p.x.batch && v.rows == p.x.rows && v.cols == cols);
  };
  require(p.x.cols == p.weight.in(), "linear: x does not fit the weight");
  require(rows_fit(p.y, out) && rows_fit(p.act, out - p.gelu_begin) && rows_fit(p.sum, out),
          "linear: an output does not fit");
  require(!p.sum || (p.gate && p.gate.batch == p.x.batch && p.gate.rows == 1 && p.gate.cols == out && p.residual &&
                     rows_fit(p.residual, out)),
          "linear: gate or residual does not fit");
  require(!(p.act && p.sum), "linear: two epilogues");
  require(!p.weight.bias || p.weight.bias.cols == out, "linear: bias does not fit");
  require(p.lora.empty() || (rows_fit(p.u, adapter_columns(p.lora)) && (p.u || !p.u_known)), "linear: u does not fit");
  check_lora(p.lora, p.weight);
}

void check(const LinearBackward& p) {
  const auto rows_fit = [&](ConstView v, std::int64_t cols) {
    return v && v.batch == p.dy.batch && v.rows == p.dy.rows && v.cols == cols;
  };
  require(p.dy.cols == p.weight.out(), "linear_backward: dy does not fit the weight");
  require(!p.dx || rows_fit(p.dx, p.weight.in()), "linear_backward: dx does not fit");
  check_lora(p.lora, p.weight);
  for (const LoraBranch& branch : p.lora) {
    if (!branch.trained()) continue;
    require(rows_fit(p.x, p.weight.in()) && rows_fit(p.u, adapter_columns(p.lora)),
            "linear_backward: a trained adapter needs x and u");
    require(same_shape(branch.da, branch.a) && same_shape(branch.db, branch.b),
            "linear_backward: gradients do not fit their adapter");
  }
}

// A piece of an adapter's gradient: out [m, n] += alpha * left^T right, summed over all rows.
struct Outer {
  ConstMatrix left, right;
  std::int64_t m = 0, n = 0;
  float alpha = 1.0F;
  Matrix out;
};

void add_outer(const Outer& o, std::int64_t rows) {
  gemm({.transpose_a = Transpose::kYes,
        .m = o.m,
        .n = o.n,
        .k = rows,
        .alpha = o.alpha,
        .a = o.left.data,
        .lda = o.left.stride,
        .b = o.right.data,
        .ldb = o.right.stride,
        .beta = 1.0F,
        .c = o.out.data,
        .ldc = o.out.stride});
}

// da += du^T x and db += scale * dy^T u of the trained branches, in pieces for the threads.
std::vector<Outer> adapter_gradients(std::span<const LoraBranch> lora, ConstMatrix dy, ConstMatrix du, ConstMatrix x,
                                     ConstMatrix u) {
  constexpr std::int64_t kPanel = 256;
  std::vector<Outer> pieces;
  std::int64_t u_begin = 0;
  for (const LoraBranch& branch : lora) {
    for (std::int64_t c = 0; branch.trained() && c < branch.a.cols; c += kPanel) {
      pieces.push_back({.left = {du.data + u_begin, du.stride},
                        .right = {x.data + c, x.stride},
                        .m = branch.rank(),
                        .n = std::min(kPanel, branch.a.cols - c),
                        .out = {branch.da.f32() + c, branch.da.row_stride}});
    }
    for (std::int64_t r = 0; branch.trained() && r < branch.b.rows; r += kPanel) {
      pieces.push_back({.left = {dy.data + branch.row_begin + r, dy.stride},
                        .right = {u.data + u_begin, u.stride},
                        .m = std::min(kPanel, branch.b.rows - r),
                        .n = branch.rank(),
                        .alpha = branch.scale,
                        .out = {branch.db.f32(0, r), branch.db.row_stride}});
    }
    u_begin += branch.rank();
  }
  return pieces;
}

}  // namespace

// out [rows, n] = beta * out + x W^T of output columns [begin, begin + n), or for the backward x W of input columns.
void CpuOps::product(ConstMatrix x, std::int64_t rows, const Weight& weight, bool backward, std::int64_t begin,
                     std::int64_t n, float beta, Matrix out, Worker& own) const {
  constexpr std::int64_t kDepth = 768;  // how much of the contraction is expanded at a time
  const std::int64_t depth = backward ? weight.out() : weight.in();
  for (std::int64_t k = 0; k < depth; k += kDepth) {
    const std::int64_t step = std::min(kDepth, depth - k);
    const ConstMatrix panel = backward ? weight_panel(weight, k, step, begin, n, own.weights)
                                       : weight_panel(weight, begin, n, k, step, own.weights);
    gemm({.transpose_b = backward ? Transpose::kNo : Transpose::kYes,
          .m = rows,
          .n = n,
          .k = step,
          .a = x.data + k,
          .lda = x.stride,
          .b = panel.data,
          .ldb = panel.stride,
          .beta = k == 0 ? beta : 1.0F,
          .c = out.data,
          .ldc = out.stride});
  }
}

// x as one matrix, gathered into `memory` if its samples do not lie at one stride. Calls then(rows, begin, n) for rows
// [begin, begin + n) of it once they are there; if not `needed` (then does nothing), only when gathering.
ConstMatrix CpuOps::as_matrix(ConstView x, Scratch& memory, bool needed,
                              const std::function<void(ConstMatrix, std::int64_t, std::int64_t)>& then) {
  const bool in_place = is_matrix(x);
  const std::int64_t rows = x.batch * x.rows;
  float* gathered = in_place ? nullptr : memory.at_least(rows * x.cols);
  const ConstMatrix matrix = in_place ? ConstMatrix{x.f32(), x.row_stride} : ConstMatrix{gathered, x.cols};
  if (in_place && !needed) return matrix;
  pool_.parallel_for(ceil_div(rows, kRowsPerTask), [&](std::int64_t task, int) {
    const std::int64_t begin = task * kRowsPerTask;
    const std::int64_t n = std::min(kRowsPerTask, rows - begin);
    for (std::int64_t r = begin; !in_place && r < begin + n; ++r) {
      std::copy_n(x.f32(r / x.rows, r % x.rows), x.cols, gathered + r * x.cols);
    }
    then({matrix.row(begin), matrix.stride}, begin, n);
  });
  return matrix;
}

void CpuOps::linear(const LinearForward& p) {
  check(p);
  const std::int64_t rows = p.x.batch * p.x.rows;
  const std::int64_t ranks = rank_sum(p.lora);
  const bool output = p.y || p.act || p.sum;
  if (rows == 0 || p.weight.out() == 0 || (p.u_known && !output)) return;
  const Matrix u{u_.at_least(rows * ranks), ranks};
  const ConstMatrix x =
      as_matrix(p.x, x_, !p.lora.empty(), [&](ConstMatrix x_rows, std::int64_t begin, std::int64_t n) {
        if (!p.u_known) {
          project_down(p.lora, x_rows, n, {u.row(begin), ranks});
          keep_ranks(p.lora, p.x.rows, begin, n, {u.row(begin), ranks});
        }
        for (std::int64_t r = begin; p.u && r < begin + n; ++r) {
          float* saved = p.u.f32(r / p.u.rows, r % p.u.rows);
          p.u_known ? std::copy_n(saved, ranks, u.row(r)) : std::copy_n(u.row(r), ranks, saved);
        }
      });
  if (!output) return;

  const float* bias = p.weight.bias ? as_floats(p.weight.bias, bias_) : nullptr;
  const bool direct = p.y && is_matrix(p.y);
  const Grid grid(rows, p.weight.out());
  pool_.parallel_for(grid.count(), [&](std::int64_t index, int worker_index) {
    const Tile tile(grid, index);
    Worker& own = worker(worker_index);
    const Matrix out = direct ? Matrix{p.y.f32() + tile.row * p.y.row_stride + tile.col, p.y.row_stride}
                              : Matrix{own.tile.at_least(tile.rows * tile.cols), tile.cols};
    const ConstMatrix x_rows{x.row(tile.row), x.stride};
    if (rows <= kFewRows) {
      few_rows_product(x_rows, tile.rows, p.weight, tile.col, tile.cols, out, own.weights);
    } else {
      product(x_rows, tile.rows, p.weight, false, tile.col, tile.cols, 0.0F, out, own);
    }
    add_up_projections(p.lora, {u.row(tile.row), u.stride}, tile, out);
    if (direct && bias == nullptr && !p.act && !p.sum) return;
    for (std::int64_t r = 0; r < tile.rows; ++r) {
      const std::int64_t row = tile.row + r;
      finish_row(p, bias, row / p.x.rows, row % p.x.rows, tile.col, tile.cols, out.row(r));
    }
  });
}

void CpuOps::linear_backward(const LinearBackward& p) {
  check(p);
  const std::int64_t rows = p.dy.batch * p.dy.rows;
  const std::int64_t ranks = rank_sum(p.lora);
  const bool trained = std::any_of(p.lora.begin(), p.lora.end(), [](const LoraBranch& b) { return b.trained(); });
  if (rows == 0 || (!p.dx && !trained)) return;
  const auto nothing = [](ConstMatrix, std::int64_t, std::int64_t) {};

  const Matrix du{du_.at_least(rows * ranks), ranks};
  const ConstMatrix dy =
      as_matrix(p.dy, dy_, !p.lora.empty(), [&](ConstMatrix dy_rows, std::int64_t begin, std::int64_t n) {
        project_back(p.lora, dy_rows, n, {du.row(begin), ranks});
        keep_ranks(p.lora, p.dy.rows, begin, n, {du.row(begin), ranks});
      });
  std::vector<Outer> outers;
  if (trained) {
    outers = adapter_gradients(p.lora, dy, du, as_matrix(p.x, x_, false, nothing), as_matrix(p.u, u_, false, nothing));
  }

  const Grid grid(rows, p.dx ? p.weight.in() : 0);
  const bool add = p.accumulate == Accumulate::kYes;
  const bool direct = p.dx && is_matrix(p.dx);
  const auto count = grid.count() + static_cast<std::int64_t>(outers.size());
  pool_.parallel_for(count, [&](std::int64_t index, int worker_index) {
    if (index >= grid.count()) return add_outer(outers[static_cast<std::size_t>(index - grid.count())], rows);
    const Tile tile(grid, index);
    Worker& own = worker(worker_index);
    const Matrix out = direct ? Matrix{p.dx.f32() + tile.row * p.dx.row_stride + tile.col, p.dx.row_stride}
                              : Matrix{own.tile.at_least(tile.rows * tile.cols), tile.cols};
    const float beta = direct && add ? 1.0F : 0.0F;
    product({dy.row(tile.row), dy.stride}, tile.rows, p.weight, true, tile.col, tile.cols, beta, out, own);
    add_down_gradients(p.lora, {du.row(tile.row), ranks}, tile, out);
    for (std::int64_t r = 0; !direct && r < tile.rows; ++r) {
      const std::int64_t row = tile.row + r;
      float* to = p.dx.f32(row / p.dx.rows, row % p.dx.rows) + tile.col;
      for (std::int64_t c = 0; c < tile.cols; ++c) to[c] = (add ? to[c] : 0.0F) + out.row(r)[c];
    }
  });
}

}  // namespace squareq
