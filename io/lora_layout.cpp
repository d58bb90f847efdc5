#include "io/lora_layout.h"

#include <algorithm>
#include <map>
#include <span>
#include <stdexcept>
#include <string_view>
#include <unordered_map>
#include <utility>

namespace squareq {
namespace {

bool all_zero(std::span<const float> values) {
  return std::all_of(values.begin(), values.end(), [](float value) { return value == 0.0F; });
}

std::span<const float> down_row(const LoraAdapter& adapter, std::int64_t term) {
  return std::span(adapter.down)
      .subspan(static_cast<std::size_t>(term * adapter.in), static_cast<std::size_t>(adapter.in));
}

// Column `term` of `up` on the rows of the linear from `begin` to `end`; none where the adapter does not reach.
std::vector<float> up_column(const LoraAdapter& adapter, std::int64_t term, std::int64_t begin, std::int64_t end) {
  std::vector<float> column;
  for (std::int64_t row = std::max(begin, adapter.row_begin); row < std::min(end, adapter.row_begin + adapter.rows);
       ++row) {
    column.push_back(adapter.up[static_cast<std::size_t>((row - adapter.row_begin) * adapter.rank + term)]);
  }
  return column;
}

// Collects terms on a range of rows.
class Terms {
 public:
  Terms(std::int64_t row_begin, std::int64_t rows) : row_begin_(row_begin), rows_(rows) {}

  std::int64_t count() const { return static_cast<std::int64_t>(ups_.size()); }

  void add(const LoraAdapter& adapter, bool also_idle) {
    for (std::int64_t term = 0; term < adapter.rank; ++term) {
      const std::span<const float> down = down_row(adapter, term);
      const std::vector<float> up = up_column(adapter, term, row_begin_, row_begin_ + rows_);
      if (up.empty() || (!also_idle && (all_zero(up) || all_zero(down)))) continue;
      std::vector<float>& sum = place(down);
      const auto first = static_cast<std::size_t>(std::max<std::int64_t>(0, adapter.row_begin - row_begin_));
      for (std::size_t i = 0; i < up.size(); ++i) sum[first + i] += up[i];
    }
  }

  LoraAdapter adapter(const LinearSize& linear, float scale) const {
    LoraAdapter result{.linear = linear.name,
                       .row_begin = row_begin_,
                       .rows = rows_,
                       .in = linear.in,
                       .rank = count(),
                       .alpha = scale * static_cast<float>(count())};
    for (const std::span<const float> down : downs_) result.down.insert(result.down.end(), down.begin(), down.end());
    result.up.reserve(static_cast<std::size_t>(rows_ * count()));
    for (std::size_t row = 0; row < static_cast<std::size_t>(rows_); ++row) {
      for (const std::vector<float>& up : ups_) result.up.push_back(up[row]);
    }
    return result;
  }

 private:
  // The column that goes with this row of `down`.
  std::vector<float>& place(std::span<const float> down) {
    const std::string_view bytes(reinterpret_cast<const char*>(down.data()), down.size_bytes());
    const auto [found, added] = index_.try_emplace(bytes, ups_.size());
    if (added) {
      downs_.push_back(down);
      ups_.emplace_back(static_cast<std::size_t>(rows_));
    }
    return ups_[found->second];
  }

  std::int64_t row_begin_;
  std::int64_t rows_;
  std::unordered_map<std::string_view, std::size_t> index_;  // by the bytes of the row of `down`
  std::vector<std::span<const float>> downs_;                // in the adapters that were added
  std::vector<std::vector<float>> ups_;
};

std::optional<LoraAdapter> combine(std::vector<LoraAdapter> adapters, const LinearSize& linear, std::int64_t row_begin,
                                   std::int64_t rows, bool also_idle) {
  std::erase_if(adapters, [&](const LoraAdapter& a) {
    return a.linear != linear.name || a.row_begin >= row_begin + rows || a.row_begin + a.rows <= row_begin;
  });
  if (adapters.empty()) return std::nullopt;
  const float scale = adapters[0].scale();
  const bool same = std::all_of(adapters.begin(), adapters.end(), [&](const auto& a) { return a.scale() == scale; });
  if (!same) std::for_each(adapters.begin(), adapters.end(), fold_scale);
  Terms terms(row_begin, rows);
  for (const LoraAdapter& adapter : adapters) terms.add(adapter, also_idle);
  if (terms.count() == 0) return std::nullopt;
  if (adapters.size() == 1 && adapters[0].rows == rows && adapters[0].rank == terms.count()) {
    return std::move(adapters[0]);
  }
  return terms.adapter(linear, same ? scale : 1.0F);
}

// True for adapters of one rank on the first parts of a linear, but not all, each with terms of its own.
bool leads_with_equal_blocks(const std::vector<LoraAdapter>& adapters, const std::vector<ModulePart>& parts,
                             std::int64_t joined_rank) {
  if (adapters.size() < 2 || adapters.size() >= parts.size()) return false;
  for (std::size_t i = 0; i < adapters.size(); ++i) {
    const LoraAdapter& a = adapters[i];
    if (a.row_begin != parts[i].row_begin || a.rows != parts[i].rows || a.rank != adapters[0].rank) return false;
  }
  return joined_rank == adapters[0].rank * static_cast<std::int64_t>(adapters.size());
}

std::optional<LoraAdapter> joined(std::vector<LoraAdapter> adapters, const LinearSize& linear, const FluxShape& shape,
                                  bool also_idle) {
  const std::vector<ModulePart> parts = module_parts(linear.name, linear.out, shape);
  if (adapters.size() == 1 && adapters[0].rows == linear.out && parts.size() > 1) return std::move(adapters[0]);
  std::sort(adapters.begin(), adapters.end(),
            [](const LoraAdapter& a, const LoraAdapter& b) { return a.row_begin < b.row_begin; });
  std::optional<LoraAdapter> whole = combine(adapters, linear, 0, linear.out, also_idle);
  // Readers that take a block-diagonal adapter apart look for as many blocks as the linear has parts.
  if (whole && leads_with_equal_blocks(adapters, parts, whole->rank)) {
    pad_rank(*whole, adapters[0].rank * static_cast<std::int64_t>(parts.size()));
  }
  return whole;
}

void check(const LoraAdapter& a, const LinearSize& linear) {
  const bool sizes = a.rank > 0 && a.down.size() == static_cast<std::size_t>(a.rank * a.in) &&
                     a.up.size() == static_cast<std::size_t>(a.rank * a.rows);
  if (!sizes || a.in != linear.in || a.row_begin < 0 || a.row_begin + a.rows > linear.out) {
    throw std::logic_error("arrange_adapters: sizes of the adapter on " + a.linear);
  }
}

}  // namespace

void fold_scale(LoraAdapter& adapter) {
  float down = adapter.scale();
  float up = 1.0F;
  while (2.0F * down < up) {
    down *= 2.0F;
    up /= 2.0F;
  }
  for (float& value : adapter.down) value *= down;
  for (float& value : adapter.up) value *= up;
  adapter.alpha = static_cast<float>(adapter.rank);
}

void swap_halves(std::vector<float>& up) {
  std::rotate(up.begin(), up.begin() + static_cast<std::ptrdiff_t>(up.size() / 2), up.end());
}

void pad_rank(LoraAdapter& adapter, std::int64_t rank) {
  if (rank <= adapter.rank) return;
  std::vector<float> up(static_cast<std::size_t>(adapter.rows * rank));
  for (std::int64_t row = 0; row < adapter.rows; ++row) {
    std::copy_n(adapter.up.data() + row * adapter.rank, adapter.rank, up.data() + row * rank);
  }
  adapter.alpha = adapter.scale() * static_cast<float>(rank);
  adapter.up = std::move(up);
  adapter.down.resize(static_cast<std::size_t>(rank * adapter.in));
  adapter.rank = rank;
}

std::optional<LoraAdapter> adapter_on_rows(const std::vector<LoraAdapter>& adapters, const LinearSize& linear,
                                           std::int64_t row_begin, std::int64_t rows) {
  return combine(adapters, linear, row_begin, rows, false);
}

std::vector<LoraAdapter> arrange_adapters(std::vector<LoraAdapter> adapters, const FluxShape& shape,
                                          LoraNaming naming) {
  const bool all_idle =
      std::all_of(adapters.begin(), adapters.end(), [](const LoraAdapter& a) { return all_zero(a.up); });
  std::map<std::string, std::vector<LoraAdapter>> by_linear;
  for (LoraAdapter& adapter : adapters) {
    if (all_idle || !all_zero(adapter.up)) by_linear[adapter.linear].push_back(std::move(adapter));
  }
  std::vector<LoraAdapter> arranged;
  std::int64_t rank = 0;
  for (const LinearSize& linear : flux_linears(shape)) {
    auto found = by_linear.extract(linear.name);
    if (!found) continue;
    for (const LoraAdapter& adapter : found.mapped()) check(adapter, linear);
    const auto keep = [&](std::optional<LoraAdapter> adapter) {
      if (!adapter) return;
      rank = std::max(rank, adapter->rank);
      arranged.push_back(std::move(*adapter));
    };
    if (naming == LoraNaming::kKohya) {
      keep(joined(std::move(found.mapped()), linear, shape, all_idle));
      continue;
    }
    std::for_each(found.mapped().begin(), found.mapped().end(), fold_scale);
    for (const ModulePart& part : module_parts(linear.name, linear.out, shape)) {
      keep(combine(found.mapped(), linear, part.row_begin, part.rows, all_idle));
    }
  }
  if (!by_linear.empty()) throw std::logic_error("arrange_adapters: no linear " + by_linear.begin()->first);
  if (naming == LoraNaming::kPeft) {
    for (LoraAdapter& adapter : arranged) pad_rank(adapter, rank);
  }
  return arranged;
}

}  // namespace squareq
