#include "model/flux/state.h"

namespace squareq::flux {

void layout(Carver& carver, State& s) {
  const std::int64_t b = s.batch;
  const std::int64_t h = s.hidden();
  const std::int64_t tokens = s.tokens();
  const auto take = [&](std::int64_t rows, std::int64_t cols) { return carver.take(DType::F32, b, rows, cols); };
  const auto take_tokens = [&](std::int64_t cols) { return carver.take(s.activations, b, tokens, cols); };

  s.img = take(s.sequence.image + s.sequence.reference, s.shape.in_channels);
  s.txt = take(s.sequence.text, s.shape.context_in);
  s.y = take(1, s.shape.vector_in);
  s.cosine = carver.take(DType::F32, 1, tokens, s.shape.head_dim / 2);
  s.sine = carver.take(DType::F32, 1, tokens, s.shape.head_dim / 2);
  s.vec = take(1, h);
  s.silu_vec = take(1, h);
  s.modulation = take(1, s.modulation_width());
  s.prediction = take(s.sequence.output, s.shape.out_channels);

  s.x.clear();
  for (std::int64_t i = 0; i <= s.blocks(); ++i) {
    const bool fresh = s.wanted.gradients || i < 2;
    s.x.push_back(fresh ? take_tokens(h) : s.x[static_cast<std::size_t>(i) - 2]);
  }
  if (!s.wanted.gradients) return;

  s.dprediction = take(s.sequence.output, s.shape.out_channels);
  s.dx = take_tokens(h);
  s.dmodulation = take(1, s.modulation_width());
  s.dsilu_vec = take(1, h);
  s.dz = take_tokens(3 * h + s.shape.mlp_hidden);
  s.dcat = take_tokens(h + s.shape.mlp_hidden);
  s.dn = take_tokens(h);
  if (s.wanted.input_gradients) {
    s.dimg = take(s.img.rows, s.img.cols);
    s.dtxt = take(s.txt.rows, s.txt.cols);
    s.dy = take(1, s.y.cols);
  }
}

}  // namespace squareq::flux
