// Large blocks of memory on huge pages, kept when they are freed: preloaded before a training.
//
// XLA:CPU allocates the buffers of a step anew in every step, by posix_memalign, and glibc maps
// and unmaps such blocks: the kernel clears their pages again each time. Here a freed block
// waits for the next request of its size. Never more is mapped than an eighth above the most
// that was in use at a time. All else goes to glibc.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

extern void __libc_free(void *);
extern void *__libc_memalign(size_t, size_t);
extern void *__libc_realloc(void *, size_t);

enum { kBlocks = 4096 };
static const size_t kHugePage = (size_t)2 << 20, kLeast = (size_t)1 << 20;

struct Block {
  char *data;
  size_t size;
  unsigned long freed;  // when: the number of frees until then
  bool used;
};

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;  // guards all that follows
static struct Block blocks[kBlocks];  // a table of its own: malloc may not be called from here
static int count;
static size_t mapped, used, most_used;
static unsigned long frees;

static void lock(void) { pthread_mutex_lock(&mutex); }
static void unlock(void) { pthread_mutex_unlock(&mutex); }

__attribute__((constructor)) static void start(void) { pthread_atfork(lock, unlock, unlock); }

// `size` bytes on huge pages, or NULL.
static char *map(size_t size) {
  const int protection = PROT_READ | PROT_WRITE, flags = MAP_PRIVATE | MAP_ANONYMOUS;
  char *whole = mmap(NULL, size + kHugePage, protection, flags, -1, 0);
  if (whole == MAP_FAILED) return NULL;
  char *data = (char *)(((uintptr_t)whole + kHugePage - 1) / kHugePage * kHugePage);
  const size_t before = data - whole;
  if (before) munmap(whole, before);
  munmap(data + size, kHugePage - before);
  madvise(data, size, MADV_HUGEPAGE);
  return data;
}

// The freed block that fits best, at most an eighth too large; NULL if there is none.
static struct Block *fitting(size_t size) {
  struct Block *best = NULL;
  for (struct Block *b = blocks; b < blocks + count; ++b) {
    if (b->used || b->size < size || b->size > size + size / 8) continue;
    if (!best || b->size < best->size) best = b;
  }
  return best;
}

// Unmaps freed blocks, longest unused first, until `size` more may be mapped.
static void make_room(size_t size) {
  const size_t most = most_used > used + size ? most_used : used + size;
  while (mapped + size > most + most / 8) {
    struct Block *oldest = NULL;
    for (struct Block *b = blocks; b < blocks + count; ++b) {
      if (!b->used && (!oldest || b->freed < oldest->freed)) oldest = b;
    }
    if (!oldest) return;
    munmap(oldest->data, oldest->size);
    mapped -= oldest->size;
    *oldest = blocks[--count];
  }
}

static void *take(size_t bytes) {
  const size_t size = (bytes + kHugePage - 1) / kHugePage * kHugePage;
  lock();
  struct Block *block = fitting(size);
  if (!block) {
    make_room(size);
    char *data = count < kBlocks ? map(size) : NULL;
    if (data) {
      block = &blocks[count++];
      *block = (struct Block){.data = data, .size = size};
      mapped += size;
    }
  }
  void *data = NULL;
  if (block) {
    block->used = true;
    used += block->size;
    if (used > most_used) most_used = used;
    data = block->data;
  }
  unlock();
  return data;
}

// The bytes of our block at `data`, which is then free where `freeing`; 0 if it is not ours.
static size_t size_of(void *data, bool freeing) {
  if (!data || (uintptr_t)data % kHugePage) return 0;
  size_t size = 0;
  lock();
  for (struct Block *b = blocks; b < blocks + count && !size; ++b) {
    if (b->data != data) continue;
    size = b->size;
    if (!freeing) continue;
    b->used = false;
    b->freed = ++frees;
    used -= size;
  }
  unlock();
  return size;
}

static void *allocate(size_t alignment, size_t bytes) {
  const bool large = bytes >= kLeast && bytes < SIZE_MAX / 2 && alignment <= kHugePage;
  void *data = large ? take(bytes) : NULL;
  return data ? data : __libc_memalign(alignment, bytes);
}

int posix_memalign(void **data, size_t alignment, size_t bytes) {
  const bool power = alignment && !(alignment & (alignment - 1));
  if (!power || alignment % sizeof(void *)) return EINVAL;
  void *given = allocate(alignment, bytes);
  if (!given) return ENOMEM;
  *data = given;
  return 0;
}

void *aligned_alloc(size_t alignment, size_t bytes) { return allocate(alignment, bytes); }

void free(void *data) {
  if (!size_of(data, true)) __libc_free(data);
}

void *realloc(void *data, size_t bytes) {
  const size_t size = size_of(data, false);
  if (!size) return __libc_realloc(data, bytes);
  void *moved = bytes ? __libc_realloc(NULL, bytes) : NULL;
  if (moved) memcpy(moved, data, size < bytes ? size : bytes);
  if (moved || !bytes) free(data);
  return moved;
}

size_t malloc_usable_size(void *data) {
  const size_t size = size_of(data, false);
  size_t (*glibcs)(void *) = (size_t (*)(void *))dlsym(RTLD_NEXT, "malloc_usable_size");
  return size ? size : glibcs(data);
}

// For tests: bytes that are mapped.
size_t okdph_memory_mapped(void) { return mapped; }
