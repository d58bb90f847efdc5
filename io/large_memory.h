// Memory for pictures.
#pragma once

#include <cstddef>
#include <vector>

namespace squareq {

// Asks the system for huge pages behind [data, data + bytes); has no effect where it does not grant them.
void prefer_huge_pages(void* data, std::size_t bytes);

// `count` zeros. The first touch of each small page of a fresh picture would cost a third of the time that a JPEG takes
// to be decoded, so these are huge ones where they can be.
template <class T>
std::vector<T> large_vector(std::size_t count) {
  std::vector<T> values;
  values.reserve(count);
  prefer_huge_pages(values.data(), count * sizeof(T));
  values.resize(count);
  return values;
}

}  // namespace squareq
