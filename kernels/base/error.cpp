#include "kernels/base/error.h"

namespace squareq {
namespace {

std::string sentence(const Problem& p) {
  std::string text = p.where + ": found " + p.found;
  if (!p.expected.empty()) text += ", expected " + p.expected;
  if (!p.advice.empty()) text += " (" + p.advice + ")";
  return text;
}

}  // namespace

Error::Error(Problem problem) : std::runtime_error(sentence(problem)), problem_(std::move(problem)) {}

}  // namespace squareq
