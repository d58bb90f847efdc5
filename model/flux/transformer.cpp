#include "model/flux/transformer.h"

#include <memory>

#include "model/flux/blocks.h"
#include "model/flux/blocks_common.h"

namespace squareq::flux {
namespace {

// One summand of vec: out_layer(silu(in_layer(input))).
struct Embedder {
  Linear in_layer, out_layer;
  View input, hidden, act, result;  // [B, 1, ·]
  View dhidden;

  bool present() const { return in_layer.out > 0; }
  bool trained() const { return in_layer.trained() || out_layer.trained(); }
};

struct EmbedStage {
  Linear img_in, txt_in;
  Embedder time, guidance, vector;
  View dvec;
};

Embedder make_embedder(const LoraSet& lora, const std::string& name, std::int64_t hidden, std::int64_t in) {
  return {.in_layer = make_linear(lora, name + ".in_layer", hidden, in),
          .out_layer = make_linear(lora, name + ".out_layer", hidden, hidden)};
}

EmbedStage make_embed(const State& s, const LoraSet& lora) {
  const std::int64_t h = s.hidden();
  EmbedStage e;
  e.img_in = make_linear(lora, "img_in", h, s.shape.in_channels);
  e.txt_in = make_linear(lora, "txt_in", h, s.shape.context_in);
  e.time = make_embedder(lora, "time_in", h, FluxShape::kTimeEmbedding);
  e.vector = make_embedder(lora, "vector_in", h, s.shape.vector_in);
  if (s.shape.guidance) e.guidance = make_embedder(lora, "guidance_in", h, FluxShape::kTimeEmbedding);
  return e;
}

void weights(WeightVisitor& visitor, EmbedStage& e) {
  e.img_in.visit(visitor);
  e.txt_in.visit(visitor);
  for (Embedder* m : {&e.time, &e.vector, &e.guidance}) {
    if (!m->present()) continue;
    m->in_layer.visit(visitor);
    m->out_layer.visit(visitor);
  }
}

void layout(Carver& carver, const State& s, EmbedStage& e) {
  const std::int64_t h = s.hidden();
  e.img_in.layout(carver, s.activations, s.batch, s.img.rows);
  e.txt_in.layout(carver, s.activations, s.batch, s.txt.rows);
  for (Embedder* m : {&e.time, &e.vector, &e.guidance}) {
    if (!m->present()) continue;
    m->input = carver.take(DType::F32, s.batch, 1, m->in_layer.in);
    for (View* view : {&m->hidden, &m->act, &m->result, &m->dhidden}) *view = carver.take(DType::F32, s.batch, 1, h);
    m->in_layer.layout(carver, DType::F32, s.batch, 1);
    m->out_layer.layout(carver, DType::F32, s.batch, 1);
  }
  e.dvec = carver.take(DType::F32, s.batch, 1, h);
}

void forward(Ops& ops, const State& s, const EmbedStage& e) {
  const std::int64_t text = s.sequence.text;
  const View x = s.x.front();
  e.img_in.forward(ops, s.img, x.row_slice(text, s.img.rows));
  e.txt_in.forward(ops, s.txt, x.row_slice(0, text));
  ops.sinusoid(s.sigma, e.time.input);
  ops.copy(s.y, e.vector.input, Accumulate::kNo);
  if (e.guidance.present()) ops.sinusoid(s.guidance, e.guidance.input);
  Accumulate accumulate = Accumulate::kNo;
  for (const Embedder* m : {&e.time, &e.guidance, &e.vector}) {
    if (!m->present()) continue;
    m->in_layer.forward(ops, m->input, m->hidden);
    ops.activation(Activation::kSilu, m->hidden, {}, m->act);
    m->out_layer.forward(ops, m->act, m->result);
    ops.copy(m->result, s.vec, accumulate);
    accumulate = Accumulate::kYes;
  }
  ops.activation(Activation::kSilu, s.vec, {}, s.silu_vec);
  if (s.vec_gradient) ops.fill(s.dsilu_vec, 0.0F);
}

void backward(Ops& ops, const State& s, const EmbedStage& e) {
  const std::int64_t text = s.sequence.text;
  e.img_in.backward(ops, s.dx.row_slice(text, s.img.rows), s.img, s.dimg);
  e.txt_in.backward(ops, s.dx.row_slice(0, text), s.txt, s.dtxt);
  if (!s.vec_gradient) return;
  ops.activation_backward(Activation::kSilu, s.dsilu_vec, s.vec, e.dvec, Accumulate::kNo);
  for (const Embedder* m : {&e.time, &e.guidance, &e.vector}) {
    const View dinput = m == &e.vector ? s.dy : View{};
    if (!m->present() || (!m->trained() && !dinput)) continue;
    const bool inner = m->in_layer.trained() || dinput;
    m->out_layer.backward(ops, e.dvec, m->act, inner ? m->dhidden : View{});
    if (!inner) continue;
    ops.activation_backward(Activation::kSilu, m->dhidden, m->hidden, m->dhidden, Accumulate::kNo);
    m->in_layer.backward(ops, m->dhidden, m->input, dinput);
  }
}

// Modulation linears of one block; they read nothing but silu(vec), so all of them run before the blocks.
struct ModulationStage {
  std::vector<Linear> linears;
  std::int64_t column = 0;  // of the first linear's outputs in state.modulation
};

void weights(WeightVisitor& visitor, ModulationStage& m) {
  for (Linear& linear : m.linears) linear.visit(visitor);
}

void layout(Carver& carver, const State& s, ModulationStage& m) {
  for (Linear& linear : m.linears) linear.layout(carver, DType::F32, s.batch, 1);
}

void forward(Ops& ops, const State& s, const ModulationStage& m) {
  std::int64_t column = m.column;
  for (const Linear& linear : m.linears) {
    linear.forward(ops, s.silu_vec, s.modulation.col_slice(column, linear.out));
    column += linear.out;
  }
}

void backward(Ops& ops, const State& s, const ModulationStage& m) {
  std::int64_t column = m.column;
  for (const Linear& linear : m.linears) {
    linear.backward(ops, s.dmodulation.col_slice(column, linear.out), s.silu_vec, s.vec_gradient ? s.dsilu_vec : View{},
                    Accumulate::kYes);
    column += linear.out;
  }
}

struct FinalStage {
  Linear modulation, linear;
  bool modulation_gradient = false;
  bool input_gradient = true;
  View chunks, dchunks;  // [B, 1, 2h]: shift, scale
  View n;                // [B, output, h]
};

FinalStage make_final(const State& s, const LoraSet& lora) {
  const std::int64_t h = s.hidden();
  FinalStage f;
  f.modulation = make_linear(lora, "final_layer.adaLN_modulation.1", 2 * h, h);
  f.linear = make_linear(lora, "final_layer.linear", s.shape.out_channels, h);
  f.modulation_gradient = s.wanted.gradients && (s.vec_gradient || f.modulation.trained());
  return f;
}

void weights(WeightVisitor& visitor, FinalStage& f) {
  f.modulation.visit(visitor);
  f.linear.visit(visitor);
}

void layout(Carver& carver, const State& s, FinalStage& f) {
  const std::int64_t h = s.hidden();
  f.chunks = carver.take(DType::F32, s.batch, 1, 2 * h);
  if (f.modulation_gradient) f.dchunks = carver.take(DType::F32, s.batch, 1, 2 * h);
  f.n = carver.take(s.activations, s.batch, s.sequence.output, h);
  f.modulation.layout(carver, DType::F32, s.batch, 1);
  f.linear.layout(carver, s.activations, s.batch, s.sequence.output);
}

void forward(Ops& ops, const State& s, const FinalStage& f) {
  const std::int64_t h = s.hidden();
  f.modulation.forward(ops, s.silu_vec, f.chunks);
  ops.modulated_norm({.x = s.x.back().row_slice(s.sequence.text, s.sequence.output),
                      .scale = f.chunks.col_slice(h, h),
                      .shift = f.chunks.col_slice(0, h),
                      .y = f.n});
  f.linear.forward(ops, f.n, s.prediction);
}

// Starts the gradient of the residual stream: zero where no output was taken.
void backward(Ops& ops, const State& s, const FinalStage& f) {
  const std::int64_t h = s.hidden();
  const std::int64_t text = s.sequence.text;
  const std::int64_t output = s.sequence.output;
  const bool through = f.input_gradient || f.modulation_gradient;
  const View dn = through ? s.dn.row_slice(text, output) : View{};
  f.linear.backward(ops, s.dprediction, f.n, dn);
  if (!through) return;
  ops.fill(s.dx, 0.0F);
  ops.modulated_norm_backward({.dy = dn,
                               .x = s.x.back().row_slice(text, output),
                               .scale = f.chunks.col_slice(h, h),
                               .dx = f.input_gradient ? s.dx.row_slice(text, output) : View{},
                               .dscale = f.dchunks ? f.dchunks.col_slice(h, h) : View{},
                               .dshift = f.dchunks ? f.dchunks.col_slice(0, h) : View{}});
  if (f.modulation_gradient) {
    f.modulation.backward(ops, f.dchunks, s.silu_vec, s.vec_gradient ? s.dsilu_vec : View{}, Accumulate::kYes);
  }
}

std::vector<std::string> modulation_names(const FluxShape& shape, std::int64_t block) {
  if (block < shape.double_blocks) {
    const std::string prefix = "double_blocks." + std::to_string(block);
    return {prefix + ".img_mod.lin", prefix + ".txt_mod.lin"};
  }
  return {"single_blocks." + std::to_string(block - shape.double_blocks) + ".modulation.lin"};
}

std::string block_id(const FluxShape& shape, std::int64_t block) {
  return block < shape.double_blocks ? "double_blocks." + std::to_string(block)
                                     : "single_blocks." + std::to_string(block - shape.double_blocks);
}

ModulationStage make_modulation(const State& s, const LoraSet& lora, std::int64_t block) {
  const bool is_double = block < s.shape.double_blocks;
  ModulationStage m;
  m.column = is_double ? s.double_modulation(block) : s.single_modulation(block - s.shape.double_blocks);
  for (const std::string& name : modulation_names(s.shape, block)) {
    m.linears.push_back(make_linear(lora, name, (is_double ? 6 : 3) * s.hidden(), s.hidden()));
  }
  return m;
}

// A stage over embedders, modulation or the final layer, which are never recomputed.
template <class Part>
Stage make_stage(State& s, const std::string& id, Part part, bool has_backward) {
  const auto shared = std::make_shared<Part>(std::move(part));
  return {.id = id,
          .has_backward = has_backward,
          .weights = [shared](WeightVisitor& visitor) { weights(visitor, *shared); },
          .saved = [shared, &s](Carver& carver) { layout(carver, s, *shared); },
          .forward = [shared, &s](Ops& ops, Pass) { forward(ops, s, *shared); },
          .backward = [shared, &s](Ops& ops) { backward(ops, s, *shared); }};
}

StageWork work_of(const State& s, double products) {
  const auto tokens = static_cast<double>(s.tokens());
  const auto batch = static_cast<double>(s.batch);
  return {.products = batch * products, .attention = 4.0 * batch * tokens * tokens * static_cast<double>(s.hidden())};
}

double products(std::int64_t rows, std::initializer_list<const Linear*> linears) {
  double sum = 0.0;
  for (const Linear* linear : linears) sum += 2.0 * static_cast<double>(rows * linear->out * linear->in);
  return sum;
}

StageWork work_of(const State& s, const DoubleBlock& block) {
  double sum = 0.0;
  for (std::size_t i = 0; i < 2; ++i) {
    const DoubleBlock::Stream& stream = block.streams[i];
    const std::int64_t rows = i == 0 ? s.tokens() - s.sequence.text : s.sequence.text;
    sum += products(rows, {&stream.qkv, &stream.proj, &stream.mlp0, &stream.mlp2});
  }
  return work_of(s, sum);
}

StageWork work_of(const State& s, const SingleBlock& block) {
  return work_of(s, products(s.tokens(), {&block.linear1, &block.linear2}));
}

template <class Block>
Stage make_block_stage(State& s, const std::string& id, Block block, bool has_backward) {
  const auto shared = std::make_shared<Block>(std::move(block));
  return {.id = id,
          .recomputable = true,
          .has_backward = has_backward,
          .work = work_of(s, *shared),
          .weights = [shared, &s](WeightVisitor& visitor) { weights(visitor, s, *shared); },
          .saved = [shared, &s](Carver& carver) { layout(carver, s, *shared); },
          .lasting = [shared, &s](Carver& carver, bool attention) { lasting_layout(carver, s, *shared, attention); },
          .forward = [shared, &s](Ops& ops, Pass pass) { forward(ops, s, *shared, pass); },
          .backward = [shared, &s](Ops& ops) { backward(ops, s, *shared); }};
}

bool trains_any(const LoraSet& lora, const std::string& prefix) {
  for (const LoraTarget& target : lora.targets()) {
    if (target.trained && target.linear.starts_with(prefix)) return true;
  }
  return false;
}

}  // namespace

void prepare(State& s, const LoraSet& lora) {
  s.vec_gradient = s.wanted.input_gradients;
  for (const char* embedder : {"time_in.", "guidance_in.", "vector_in."}) {
    s.vec_gradient |= s.wanted.gradients && trains_any(lora, embedder);
  }
}

std::vector<Stage> stages(State& s, const LoraSet& lora) {
  std::vector<Stage> list;
  const bool gradients = s.wanted.gradients;
  // Does anything before block i need the gradient of the residual stream?
  bool below = s.wanted.input_gradients || trains_any(lora, "img_in") || trains_any(lora, "txt_in");
  list.push_back(make_stage(s, "embed", make_embed(s, lora), gradients && (below || s.vec_gradient)));

  // Modulation could be computed for all blocks at once. Next to its block, the time to bring its weights is hidden
  // behind that of the blocks before.
  const auto add_block = [&](auto block, std::int64_t i) {
    const std::string id = block_id(s.shape, i);
    ModulationStage modulation = make_modulation(s, lora, i);
    bool modulation_needed = s.vec_gradient;
    for (const Linear& linear : modulation.linears) modulation_needed |= linear.trained();
    list.push_back(make_stage(s, "modulation." + id, std::move(modulation), gradients && modulation_needed));
    list.back().weights_in_backward = s.vec_gradient;  // adapters alone need inputs and gradients only
    block.modulation_gradient &= gradients;
    block.input_gradient = below;
    const bool needed = below || block.modulation_gradient || trains_any(lora, id + ".");
    list.push_back(make_block_stage(s, id, std::move(block), gradients && needed));
    below = needed;
  };
  for (std::int64_t i = 0; i < s.shape.double_blocks; ++i) add_block(make_double_block(s, lora, i), i);
  for (std::int64_t i = 0; i < s.shape.single_blocks; ++i) {
    add_block(make_single_block(s, lora, i), s.shape.double_blocks + i);
  }

  FinalStage final = make_final(s, lora);
  final.input_gradient = below;
  list.push_back(make_stage(s, "final_layer", std::move(final), gradients));
  return list;
}

std::vector<LinearShape> linears(const FluxShape& shape) {
  State state{.shape = shape, .batch = 1};
  struct Collector : WeightVisitor {
    std::vector<LinearShape> found;
    void linear(const std::string& name, Weight&, std::int64_t out, std::int64_t in, bool) override {
      found.push_back({name, out, in});
    }
    void tensor(const std::string&, ConstView&, std::int64_t, std::int64_t) override {}
  } collector;
  const LoraSet none;
  for (const Stage& stage : stages(state, none)) stage.weights(collector);
  return collector.found;
}

}  // namespace squareq::flux
