// Errors that people read: where, what was found, what was expected, what to do about it.
#pragma once

#include <stdexcept>
#include <string>

namespace squareq {

struct Problem {
  std::string where;     // file, tensor or config field ("model.safetensors: tensor 'img_in.weight'")
  std::string found;     // what is there ("shape [3072, 65]")
  std::string expected;  // what should be there ("shape [3072, 64]"); may be empty
  std::string advice;    // what to do ("rebuild the slab with squareq-slab build"); may be empty
};

// Base of every error the project throws on bad input. what() is one readable sentence made of the parts.
class Error : public std::runtime_error {
 public:
  explicit Error(Problem problem);
  const Problem& problem() const noexcept { return problem_; }

 private:
  Problem problem_;
};

// A file or folder cannot be opened, read, written or renamed (permissions, full disk, not there).
class FileError : public Error {
 public:
  using Error::Error;
};

// A file is there but its content is not what its format or our use of it demands.
class FormatError : public Error {
 public:
  using Error::Error;
};

// A setting (config field, command-line option) is unknown, of the wrong type, or out of range.
class ConfigError : public Error {
 public:
  using Error::Error;
};

// Numbers went wrong in a run: NaN or infinity where there must be none.
class NumericError : public Error {
 public:
  using Error::Error;
};

}  // namespace squareq
