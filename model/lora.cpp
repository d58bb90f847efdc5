#include "model/lora.h"

#include <algorithm>
#include <cmath>

#include "kernels/base/random.h"

namespace squareq {
namespace {

View matrix_at(const View& buffer, std::int64_t offset, std::int64_t rows, std::int64_t cols) {
  std::byte* data = buffer ? buffer.data + offset * static_cast<std::int64_t>(sizeof(float)) : nullptr;
  return View(data, DType::F32, 1, rows, cols);
}

}  // namespace

LoraSet::LoraSet(std::vector<LoraTarget> targets, LoraMemory memory) : targets_(std::move(targets)), memory_(memory) {
  stacks_.resize(targets_.size());
  std::stable_partition(targets_.begin(), targets_.end(), [](const LoraTarget& t) { return t.trained; });
  for (std::size_t i = 0; i < targets_.size(); ++i) {
    offsets_.push_back(count_);
    by_linear_[targets_[i].linear].push_back(i);
    count_ += targets_[i].count();
    rank_offsets_.push_back(trained_ranks_);
    if (!targets_[i].trained) continue;
    trained_count_ = count_;
    trained_ranks_ += targets_[i].rank;
  }
}

bool LoraSet::trains(const std::string& linear) const {
  const auto found = by_linear_.find(linear);
  if (found == by_linear_.end()) return false;
  return std::any_of(found->second.begin(), found->second.end(), [&](std::size_t i) { return targets_[i].trained; });
}

void LoraSet::layout(Carver& carver) {
  const auto floats = [&](std::int64_t count) { return carver.take(DType::F32, 1, 1, count); };
  parameters_ = floats(count_);
  gradients_ = floats(trained_count_);
  if (memory_.eight_bit_moments) {
    const std::int64_t blocks = (trained_count_ + kMomentBlock - 1) / kMomentBlock;
    mean_ = carver.take(DType::I8, 1, 1, trained_count_);
    variance_ = carver.take(DType::U8, 1, 1, trained_count_);
    mean_scale_ = floats(blocks);
    variance_scale_ = floats(blocks);
  } else {
    mean_ = floats(trained_count_);
    variance_ = floats(trained_count_);
  }
  if (memory_.average) average_ = floats(trained_count_);
  if (memory_.dropout_batch > 0) keep_ = carver.take(DType::F32, memory_.dropout_batch, 1, trained_ranks_);
  if (memory_.stacks == DType::F32) return;
  for (const auto& [linear, indices] : by_linear_) {
    std::vector<LoraBranch> on_linear = branches(linear);
    take_stacks(carver, on_linear, memory_.stacks, targets_[indices.front()].out);
    for (std::size_t i = 0; i < indices.size(); ++i) {
      stacks_[indices[i]] = {on_linear[i].stacked_a, on_linear[i].stacked_b};
    }
  }
}

AdamW LoraSet::adamw() const {
  return {.parameters = trained(),
          .gradients = gradients_,
          .mean = mean_,
          .variance = variance_,
          .mean_scale = mean_scale_,
          .variance_scale = variance_scale_};
}

std::vector<std::pair<std::string, View>> LoraSet::learnt() const {
  std::vector<std::pair<std::string, View>> list{{"parameters", trained()}, {"mean", mean_}, {"variance", variance_}};
  if (memory_.eight_bit_moments) {
    list.emplace_back("mean_scale", mean_scale_);
    list.emplace_back("variance_scale", variance_scale_);
  }
  if (memory_.average) list.emplace_back("average", average_);
  return list;
}

View LoraSet::a(std::size_t i) const {
  return matrix_at(parameters_, offsets_.at(i), targets_[i].rank, targets_[i].in);
}

View LoraSet::b(std::size_t i) const {
  return matrix_at(parameters_, offsets_.at(i) + targets_[i].rank * targets_[i].in, targets_[i].rows, targets_[i].rank);
}

View LoraSet::da(std::size_t i) const {
  if (!targets_.at(i).trained) return {};
  return matrix_at(gradients_, offsets_[i], targets_[i].rank, targets_[i].in);
}

View LoraSet::db(std::size_t i) const {
  if (!targets_.at(i).trained) return {};
  return matrix_at(gradients_, offsets_[i] + targets_[i].rank * targets_[i].in, targets_[i].rows, targets_[i].rank);
}

std::vector<LoraBranch> LoraSet::branches(const std::string& linear) const {
  std::vector<LoraBranch> list;
  const auto found = by_linear_.find(linear);
  if (found == by_linear_.end()) return list;
  for (const std::size_t i : found->second) list.push_back(branch(i));
  return list;
}

std::vector<LoraBranch> LoraSet::branches() const {
  std::vector<LoraBranch> list;
  for (std::size_t i = 0; i < targets_.size(); ++i) list.push_back(branch(i));
  return list;
}

LoraBranch LoraSet::branch(std::size_t i) const {
  return {.a = a(i),
          .b = b(i),
          .da = da(i),
          .db = db(i),
          .keep = targets_[i].trained && keep_ ? keep_.col_slice(rank_offsets_[i], targets_[i].rank) : View{},
          .row_begin = targets_[i].row_begin,
          .scale = static_cast<float>(targets_[i].scale),
          .stacked_a = stacks_[i].first,
          .stacked_b = stacks_[i].second};
}

void LoraSet::initialise(LoraInit init, std::uint64_t seed,
                         const std::function<void(const std::vector<float>&, const View&)>& upload) {
  for (std::size_t i = 0; i < targets_.size() && targets_[i].trained; ++i) {
    const LoraTarget& target = targets_[i];
    Random random({.seed = seed, .purpose = Purpose::kLoraInit, .module = static_cast<std::uint32_t>(i)});
    std::vector<float> values(static_cast<std::size_t>(target.rank * target.in));
    if (init == LoraInit::kKaiming) {
      const float bound = 1.0F / std::sqrt(static_cast<float>(target.in));
      random.fill_uniform(values, -bound, bound);
    } else {
      random.fill_normal(values, 1.0F / static_cast<float>(target.rank));
    }
    upload(values, a(i));
    upload(std::vector<float>(static_cast<std::size_t>(target.rows * target.rank)), b(i));
  }
}

}  // namespace squareq
