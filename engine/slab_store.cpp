#include "engine/slab_store.h"

#include <algorithm>
#include <thread>

#include "engine/host_memory.h"
#include "kernels/base/error.h"

namespace squareq {
namespace {

// Where a run of the file's bytes is.
struct Placed {
  std::uint64_t offset = 0;
  std::size_t bytes = 0;
  const std::byte* memory = nullptr;
};

class SlabBinder : public WeightVisitor {
 public:
  // Tensors are bound where they are mapped, or in the run that holds them if there are any.
  SlabBinder(const Slab& slab, std::vector<Placed> placed) : slab_(slab), placed_(std::move(placed)) {}

  void linear(const std::string& name, Weight& slot, std::int64_t out, std::int64_t in, bool bias) override {
    slot = slab_.weight(name);
    check(name + ".weight", slot.values, out, in);
    if (bias != static_cast<bool>(slot.bias)) {
      fail(name + ".bias", slot.bias ? "a bias" : "no bias", bias ? "a bias" : "no bias");
    }
    for (ConstView* view : {&slot.values, &slot.scales, &slot.bias}) move(*view);
    linears_.push_back(&slot);
  }

  void tensor(const std::string& name, ConstView& slot, std::int64_t rows, std::int64_t cols) override {
    slot = slab_.vector(name);
    check(name, slot, rows, cols);
    move(slot);
  }

  const std::vector<Weight*>& linears() const { return linears_; }

 private:
  void move(ConstView& view) const {
    if (!view || placed_.empty()) return;
    const SlabBlock& first = slab_.blocks().front();
    const std::uint64_t offset = first.offset + static_cast<std::uint64_t>(view.data - slab_.bytes(first).data());
    for (const Placed& run : placed_) {
      if (offset < run.offset || offset + view.bytes() > run.offset + run.bytes) continue;
      view.data = run.memory + (offset - run.offset);
      return;
    }
    throw std::logic_error("SlabStore: a weight of a stage is in another block");
  }

  void check(const std::string& name, const ConstView& view, std::int64_t rows, std::int64_t cols) const {
    if (view.rows == rows && view.cols == cols) return;
    const auto shape = [](std::int64_t r, std::int64_t c) {
      return "shape [" + std::to_string(r) + ", " + std::to_string(c) + "]";
    };
    fail(name, shape(view.rows, view.cols), shape(rows, cols));
  }

  [[noreturn]] void fail(const std::string& name, const std::string& found, const std::string& expected) const {
    throw FormatError({.where = slab_.path() + ": tensor '" + name + "'",
                       .found = found,
                       .expected = expected,
                       .advice = "rebuild the slab with squareq-slab build"});
  }

  const Slab& slab_;
  std::vector<Placed> placed_;
  std::vector<Weight*> linears_;
};

// The place between two tensors that cuts a block into the most equal halves; its end if it has one tensor only.
std::uint64_t middle(const Slab& slab, const SlabBlock& block) {
  std::uint64_t best = block.bytes;
  for (const std::string& tensor : block.tensors) {
    const std::uint64_t cut = slab.offset_of(tensor) - block.offset;
    if (cut > 0 && std::max(cut, block.bytes - cut) < std::max(best, block.bytes - best)) best = cut;
  }
  return best;
}

bool contains(const std::vector<std::string>& ids, const std::string& id) {
  return std::ranges::find(ids, id) != ids.end();
}

std::size_t default_readers() { return std::clamp<std::size_t>(std::thread::hardware_concurrency(), 2, 12); }

}  // namespace

std::size_t slot_bytes(const Slab& slab, const std::vector<std::string>& streamed) {
  std::uint64_t half = 0;
  for (const std::string& id : streamed) {
    const SlabBlock& block = slab.block(id);
    const std::uint64_t cut = middle(slab, block);
    half = std::max({half, cut, block.bytes - cut});
  }
  // A block that is hardly larger than a slot would take two.
  std::uint64_t bytes = half;
  for (const std::string& id : streamed) {
    const std::uint64_t whole = slab.block(id).bytes;
    if (whole <= half + half / 32) bytes = std::max(bytes, whole);
  }
  return bytes;
}

std::vector<View> take_prepared(Carver& carver, const Ops& ops, const Slab& slab, const Stage& stage) {
  SlabBinder binder(slab, {});
  stage.weights(binder);
  std::vector<View> copies;
  for (const Weight* weight : binder.linears()) {
    const View form = ops.prepared_form(*weight);
    copies.push_back(form.count() > 0 ? carver.take(form.dtype, form.batch, form.rows, form.cols) : View{});
  }
  return copies;
}

SlabStore::SlabStore(const Slab& slab, Device& device, Residency residency)
    : slab_(slab),
      device_(device),
      residency_(std::move(residency)),
      file_(slab.path(), RandomAccessFile::Mode::kCached) {
  if (residency_.readers == 0) residency_.readers = default_readers();
}

bool SlabStore::is_streamed(const std::string& id) const { return contains(residency_.streamed, id); }

bool SlabStore::in_place(const std::string& id) const { return device_.reads_host_memory() && !is_streamed(id); }

void SlabStore::add_parts(const std::string& id, std::size_t capacity) {
  const SlabBlock& block = slab_.block(id);
  const bool streamed = is_streamed(id);
  const std::uint64_t cut = streamed && block.bytes > capacity ? middle(slab_, block) : block.bytes;
  for (const auto& [begin, end] : {std::pair<std::uint64_t, std::uint64_t>{0, cut}, {cut, block.bytes}}) {
    if (begin == end) continue;
    parts_of_[id].push_back(parts_.size());
    parts_.push_back({.block = id, .offset = block.offset + begin, .bytes = end - begin, .streamed = streamed});
  }
}

void SlabStore::layout(Carver& carver, const std::vector<Stage>& stages) {
  const std::size_t capacity = slot_bytes(slab_, residency_.streamed);
  parts_.clear();
  parts_of_.clear();
  for (const Stage& stage : stages) {
    if (!in_place(stage.id)) add_parts(stage.id, capacity);
  }
  const auto take = [&](std::size_t bytes) { return carver.take(DType::U8, 1, 1, static_cast<std::int64_t>(bytes)); };
  homes_.clear();
  slots_.clear();
  for (const SlabPart& part : parts_) homes_.push_back(part.streamed ? View{} : take(part.bytes));
  const std::size_t slots = residency_.streamed.empty() ? 0 : residency_.slots;
  for (std::size_t i = 0; i < slots; ++i) slots_.push_back(take(capacity));
  copies_.clear();
  for (const Stage& stage : stages) {
    if (is_streamed(stage.id) || !contains(residency_.prepared, stage.id)) continue;
    copies_[stage.id].of_linears = take_prepared(carver, device_.ops(), slab_, stage);
  }
}

// After the last layout, when everything has memory.
void SlabStore::start() {
  if (queue_ || parts_.empty()) return;
  const auto addresses = [](const std::vector<View>& views) {
    std::vector<std::byte*> list;
    list.reserve(views.size());
    for (const View& view : views) list.push_back(view.data);
    return list;
  };
  source_ = std::make_unique<SlabSource>(slab_, device_.transfers(), parts_, residency_.path, residency_.readers,
                                         residency_.page_cache.value_or(available_page_cache()));
  queue_ = std::make_unique<PrefetchQueue>(device_.transfers(), *source_, addresses(homes_), addresses(slots_),
                                           residency_.readers);
}

std::string SlabStore::path_name() const { return source_ ? source_->path_name() : ""; }

double SlabStore::bytes_brought() const {
  double bytes = 0.0;
  if (!queue_) return bytes;
  const std::vector<std::size_t> loads = queue_->loads();
  for (std::size_t i = 0; i < loads.size(); ++i) bytes += static_cast<double>(loads[i] * parts_[i].bytes);
  return bytes;
}

void SlabStore::expect(const std::vector<const Stage*>& stages) {
  check_unchanged();
  start();
  if (!queue_) return;
  std::vector<std::size_t> uses;
  for (const Stage* stage : stages) {
    if (in_place(stage->id)) continue;
    const std::vector<std::size_t>& parts = parts_of_.at(stage->id);
    uses.insert(uses.end(), parts.begin(), parts.end());
  }
  queue_->expect(uses);
}

void SlabStore::acquire(const Stage& stage) {
  std::vector<Placed> placed;
  if (in_place(stage.id)) {
    if (!verified_.contains(stage.id)) slab_.verify_block(stage.id);
    verified_.insert(stage.id);
  } else {
    start();
    for (const std::size_t index : parts_of_.at(stage.id)) {
      placed.push_back({parts_[index].offset, parts_[index].bytes, queue_->acquire(index)});
    }
  }
  SlabBinder binder(slab_, std::move(placed));
  stage.weights(binder);
  if (const auto copies = copies_.find(stage.id); copies != copies_.end() && !copies->second.written) {
    const std::vector<View>& views = copies->second.of_linears;
    for (std::size_t i = 0; i < views.size(); ++i) {
      if (views[i]) device_.ops().prepare(*binder.linears()[i], views[i]);
    }
    copies->second.written = true;
  }
  bind_copies(stage.id, binder.linears());
}

void SlabStore::bind_copies(const std::string& id, const std::vector<Weight*>& linears) const {
  const auto copies = copies_.find(id);
  if (copies == copies_.end()) return;
  for (std::size_t i = 0; i < linears.size(); ++i) linears[i]->prepared = copies->second.of_linears[i];
}

void SlabStore::release(const Stage& stage) {
  if (in_place(stage.id)) return;
  for (const std::size_t index : parts_of_.at(stage.id)) queue_->release(index);
}

void SlabStore::bind_shapes(const Stage& stage) const {
  SlabBinder binder(slab_, {});
  stage.weights(binder);
  bind_copies(stage.id, binder.linears());
}

}  // namespace squareq
