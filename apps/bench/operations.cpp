#include "apps/bench/operations.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <vector>

#include "apps/bench/families.h"
#include "engine/arena.h"
#include "engine/pipeline.h"
#include "kernels/base/random.h"

namespace squareq::bench {
namespace {

constexpr std::int64_t kHidden = 3072, kMlp = 12288, kHeadDim = 128;
constexpr std::int64_t kJoint = 3 * kHidden + kMlp;  // columns of linear1

// Operands of one call. There are several sets, used in turn, so that what one call reads is not in a cache from the
// call before.
struct Operands {
  View x, y, z, dz, cat, dcat, du;
  View scale, shift, gain, cosine, sine, dscale, dshift;
  View values, scales, bias;  // of an INT8 weight, large enough for every linear
  View a, b, da, db, u;       // of an adapter likewise
  View stacked_a, stacked_b;

  void layout(Carver& carver, const OperationsOptions& options, DType type) {
    const auto tokens = [&](std::int64_t cols) { return carver.take(type, 1, options.tokens, cols); };
    const auto vector = [&](std::int64_t cols) { return carver.take(DType::F32, 1, 1, cols); };
    x = tokens(kHidden), y = tokens(kHidden), z = tokens(kJoint), dz = tokens(kJoint);
    cat = tokens(kHidden + kMlp), dcat = tokens(kHidden + kMlp);
    for (View* v : {&scale, &shift, &dscale, &dshift}) *v = vector(kHidden);
    gain = vector(kHeadDim);
    for (View* v : {&cosine, &sine}) *v = carver.take(DType::F32, 1, options.tokens, kHeadDim / 2);
    values = carver.take(DType::I8, 1, kJoint, kHidden);
    scales = vector(kJoint), bias = vector(kJoint);
    for (View* v : {&a, &b, &da, &db}) *v = carver.take(DType::F32, 1, options.rank, kJoint);
    const std::int64_t ranks = (options.rank + 15) / 16 * 16;
    u = tokens(ranks);
    for (View* v : {&stacked_a, &stacked_b}) *v = carver.take(type, 1, ranks, kJoint);
  }

  std::vector<View> filled() const {
    return {x, y, z, dz, cat, dcat, scale, shift, gain, cosine, sine, bias, a, b, u, stacked_a, stacked_b};
  }
};

struct LinearShape {
  const char* name;
  std::int64_t in, out;
};
constexpr std::array kLinears{
    LinearShape{"qkv", kHidden, 3 * kHidden}, LinearShape{"proj", kHidden, kHidden},
    LinearShape{"mlp.0", kHidden, kMlp},      LinearShape{"mlp.2", kMlp, kHidden},
    LinearShape{"linear1", kHidden, kJoint},  LinearShape{"linear2", kHidden + kMlp, kHidden}};

View reshaped(const View& v, std::int64_t rows, std::int64_t cols) { return View(v.data, v.dtype, 1, rows, cols); }

struct Operation {
  std::string name;
  std::function<void(Ops&, const Operands&)> call;
};

void add_linears(std::vector<Operation>& list, std::int64_t rank) {
  for (const LinearShape& shape : kLinears) {
    const auto weight = [shape](const Operands& o) {
      return Weight{.codec = Codec::kInt8Rows,
                    .values = reshaped(o.values, shape.out, shape.in),
                    .scales = reshaped(o.scales, 1, shape.out),
                    .bias = reshaped(o.bias, 1, shape.out)};
    };
    const auto branch = [shape, rank](const Operands& o) {
      return LoraBranch{.a = reshaped(o.a, rank, shape.in),
                        .b = reshaped(o.b, shape.out, rank),
                        .da = reshaped(o.da, rank, shape.in),
                        .db = reshaped(o.db, shape.out, rank),
                        .stacked_a = reshaped(o.stacked_a, o.stacked_a.rows, shape.in),
                        .stacked_b = reshaped(o.stacked_b, o.stacked_b.rows, shape.out)};
    };
    const auto input = [shape](const View& hidden, const View& wide) {
      return shape.in == kHidden ? hidden : wide.col_slice(kHidden + kMlp - shape.in, shape.in);
    };
    const auto output = [shape](const View& hidden, const View& wide) {
      return shape.out == kHidden ? hidden : wide.col_slice(kJoint - shape.out, shape.out);
    };
    list.push_back({std::string(shape.name) + " forward", [=](Ops& ops, const Operands& o) {
                      const std::array lora{branch(o)};
                      const Weight w = weight(o);
                      ops.linear({.x = input(o.x, o.cat), .weight = w, .lora = lora, .u = o.u, .y = output(o.y, o.z)});
                    }});
    list.push_back({std::string(shape.name) + " backward", [=](Ops& ops, const Operands& o) {
                      const std::array lora{branch(o)};
                      const Weight w = weight(o);
                      ops.linear_backward({.dy = output(o.y, o.dz),
                                           .x = input(o.x, o.cat),
                                           .weight = w,
                                           .lora = lora,
                                           .u = o.u,
                                           .dx = input(o.x, o.dcat)});
                    }});
  }
}

std::vector<Operation> operations(std::int64_t rank) {
  const auto mlp_of_z = [](const View& z) { return z.col_slice(3 * kHidden, kMlp); };
  const auto mlp_of_cat = [](const View& cat) { return cat.col_slice(kHidden, kMlp); };
  std::vector<Operation> list{
      {"copy", [](Ops& ops, const Operands& o) { ops.copy(o.z, o.dz, Accumulate::kNo); }},
      {"modulated norm",
       [](Ops& ops, const Operands& o) {
         ops.modulated_norm({.x = o.x, .scale = o.scale, .shift = o.shift, .y = o.y});
       }},
      {"modulated norm backward",
       [](Ops& ops, const Operands& o) {
         ops.modulated_norm_backward(
             {.dy = o.y, .x = o.x, .scale = o.scale, .dx = o.z.col_slice(0, kHidden), .accumulate = Accumulate::kYes});
       }},
      {"modulated norm backward, modulation trained",
       [](Ops& ops, const Operands& o) {
         ops.modulated_norm_backward({.dy = o.y,
                                      .x = o.x,
                                      .scale = o.scale,
                                      .dx = o.z.col_slice(0, kHidden),
                                      .accumulate = Accumulate::kYes,
                                      .dscale = o.dscale,
                                      .dshift = o.dshift});
       }},
      {"norm and RoPE",
       [](Ops& ops, const Operands& o) {
         ops.norm_rope({.x = o.z.col_slice(0, kHidden), .gain = o.gain, .cosine = o.cosine, .sine = o.sine, .y = o.x});
       }},
      {"norm and RoPE backward",
       [](Ops& ops, const Operands& o) {
         const View d = o.dz.col_slice(0, kHidden);
         ops.norm_rope_backward(
             {.dy = d, .x = o.z.col_slice(0, kHidden), .gain = o.gain, .cosine = o.cosine, .sine = o.sine, .dx = d});
       }},
      {"GELU", [=](Ops& ops,
                   const Operands& o) { ops.activation(Activation::kGeluTanh, mlp_of_z(o.z), {}, mlp_of_cat(o.cat)); }},
      {"GELU backward",
       [=](Ops& ops, const Operands& o) {
         ops.activation_backward(Activation::kGeluTanh, mlp_of_cat(o.dcat), mlp_of_z(o.z), mlp_of_z(o.dz),
                                 Accumulate::kNo);
       }},
      {"gate backward", [](Ops& ops, const Operands& o) { ops.gate_backward(o.x, o.scale, {}, o.y, {}); }},
      {"gate backward, modulation trained", [](Ops& ops, const Operands& o) {
         ops.gate_backward(o.x, o.scale, o.cat.col_slice(0, kHidden), o.y, o.dscale);
       }}};
  add_linears(list, rank);
  return list;
}

// Random values, from a table that is repeated: making new ones for every place would take longer than the measurement.
void fill(Device& device, Operands& o, std::uint32_t stream) {
  std::vector<float> table(std::size_t{1} << 20);
  Random({.purpose = Purpose::kTest, .module = stream}).fill_normal(table);
  for (const View& v : o.filled()) {
    const std::size_t size = size_of(v.dtype);
    std::vector<std::byte> block(table.size() * size), stored(v.bytes());
    from_f32(table.data(), v.dtype, block.data(), static_cast<std::int64_t>(table.size()));
    for (std::size_t at = 0; at < stored.size(); at += block.size()) {
      std::copy_n(block.begin(), std::min(block.size(), stored.size() - at),
                  stored.begin() + static_cast<std::ptrdiff_t>(at));
    }
    device.upload(stored.data(), v);
  }
  std::vector<std::int8_t> weights(static_cast<std::size_t>(o.values.count()));
  std::uint32_t state = stream;
  for (std::int8_t& w : weights) w = static_cast<std::int8_t>((state = state * 1664525 + 1013904223) >> 24);
  device.upload(weights.data(), o.values);
  for (const auto& [view, value] : {std::pair{o.scales, 1e-3F}, {o.da, 0.0F}, {o.db, 0.0F}})
    device.ops().fill(view, value);
}

}  // namespace

int run_operations(const OperationsOptions& options) {
  const std::unique_ptr<Device> device = open_device(options.device, 0, options.compute);
  Ops& ops = device->ops();
  std::array<Operands, 3> sets;
  const std::vector<Operation> list = operations(options.rank);
  const auto layout = [&](Carver& carver) {
    for (Operands& set : sets) set.layout(carver, options, ops.activation_type());
  };
  const auto rehearse = [&](Ops& rehearsed) {
    for (const Operation& operation : list) operation.call(rehearsed, sets[0]);
  };
  const Arena arena(*device, {.layout = layout, .rehearse = rehearse});
  arena.use();
  for (std::size_t i = 0; i < sets.size(); ++i) fill(*device, sets[i], static_cast<std::uint32_t>(i + 1));
  nlohmann::json json;
  for (const Operation& operation : list) {
    for (const Operands& set : sets) operation.call(ops, set);
    KernelTimes times = device->profile([&] {
      for (int i = 0; i < options.repeats; ++i) operation.call(ops, sets[static_cast<std::size_t>(i) % sets.size()]);
    });
    times[static_cast<std::size_t>(KernelFamily::kOther)] = {};  // recording the times themselves
    for (FamilyTime& t : times) t.seconds /= options.repeats, t.work /= options.repeats;
    if (options.json) {
      json[operation.name] = families_json(times);
    } else {
      fmt::print("{}\n", operation.name);
      print_families(times);
    }
  }
  if (options.json) fmt::print("{}\n", json.dump(1));
  return 0;
}

}  // namespace squareq::bench
