// Reader of SentencePiece models (spiece.model, a protobuf ModelProto).
#pragma once

#include <string>
#include <string_view>

#include "kernels/base/vocabulary.h"

namespace squareq {

// Pieces with the scores that Hugging Face gives them, charsmap and unknown id of a unigram model. The other fields of
// the vocabulary keep their defaults. Throws FormatError (naming `where`) for broken bytes and for models of another
// kind (BPE, byte fallback, whitespace as suffix).
T5Vocabulary parse_sentencepiece(std::string_view bytes, const std::string& where);

}  // namespace squareq
