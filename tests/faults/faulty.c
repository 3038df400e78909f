/* Loaded before the C library (LD_PRELOAD): calls that change files below one folder are counted, and the chosen one
 * fails or kills the process, whoever makes it: Python, safetensors (Rust), torch (C++).
 *
 *     faults_arm("/tmp/run", WRITE | SYNC, 17, EIO, 0)     the 17th write or sync below /tmp/run fails
 *     faults_arm("/tmp/run", RENAME, 2, KILL_AFTER, 0)     SIGKILL when the second rename is done
 *     faults_count()                                       calls so far
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { WRITE = 1, SYNC = 2, RENAME = 4, REMOVE = 8, CREATE = 16, TRUNCATE = 32 };
enum { KILL_BEFORE = -1, KILL_AFTER = -2 }; /* a write is cut in its middle by the latter */

static char folder[PATH_MAX];
static int kinds, action, onwards;
static long chosen;
static atomic_long count;

void faults_arm(const char *below, int which, long at, int then, int forever) {
    kinds = 0;
    strncpy(folder, below, sizeof folder - 1);
    chosen = at, action = then, onwards = forever;
    atomic_store(&count, 0);
    kinds = which;
}

long faults_count(void) { return atomic_load(&count); }

static int below(const char *path) {
    char whole[PATH_MAX];
    if (path[0] != '/') {
        char here[PATH_MAX];
        if (!getcwd(here, sizeof here) || snprintf(whole, sizeof whole, "%s/%s", here, path) >= (int)sizeof whole)
            return 0;
        path = whole;
    }
    return strncmp(path, folder, strlen(folder)) == 0;
}

static int below_number(int number) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", number);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size < 0) return 0;
    path[size] = 0;
    return below(path);
}

static int below_at(int place, const char *path) {
    return path[0] == '/' || place == AT_FDCWD ? below(path) : below_number(place);
}

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

/* 0: go on; 1: kill when it's done; -1: fail with errno set */
static int meets(int kind, int ours) {
    if (!(kinds & kind) || !ours) return 0;
    long now = atomic_fetch_add(&count, 1) + 1;
    if (chosen == 0 || (onwards ? now < chosen : now != chosen)) return 0;
    if (action == KILL_BEFORE) die();
    if (action == KILL_AFTER) return 1;
    errno = action;
    return -1;
}

#define REAL(type, name, ...)                                        \
    static type (*real)(__VA_ARGS__);                                \
    if (!real) real = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

#define CALL(kind, ours, call)                         \
    do {                                               \
        int saved = errno;                             \
        int met = kinds ? meets(kind, ours) : 0;       \
        if (met < 0) return -1;                        \
        errno = saved;                                 \
        long done = (call);                            \
        if (met) die();                                \
        return done;                                   \
    } while (0)

ssize_t write(int number, const void *bytes, size_t size) {
    REAL(ssize_t, write, int, const void *, size_t);
    int saved = errno, met = kinds ? meets(WRITE, below_number(number)) : 0;
    if (met < 0) return -1;
    errno = saved;
    ssize_t done = real(number, bytes, met ? size / 2 : size);
    if (met) die();
    return done;
}

ssize_t writev(int number, const struct iovec *parts, int many) {
    REAL(ssize_t, writev, int, const struct iovec *, int);
    CALL(WRITE, below_number(number), real(number, parts, many));
}

ssize_t pwrite64(int number, const void *bytes, size_t size, off64_t at) {
    REAL(ssize_t, pwrite64, int, const void *, size_t, off64_t);
    CALL(WRITE, below_number(number), real(number, bytes, size, at));
}

int fsync(int number) {
    REAL(int, fsync, int);
    CALL(SYNC, below_number(number), real(number));
}

int fdatasync(int number) {
    REAL(int, fdatasync, int);
    CALL(SYNC, below_number(number), real(number));
}

int rename(const char *from, const char *to) {
    REAL(int, rename, const char *, const char *);
    CALL(RENAME, below(from), real(from, to));
}

int renameat(int a, const char *from, int b, const char *to) {
    REAL(int, renameat, int, const char *, int, const char *);
    CALL(RENAME, below_at(a, from), real(a, from, b, to));
}

int unlink(const char *path) {
    REAL(int, unlink, const char *);
    CALL(REMOVE, below(path), real(path));
}

int unlinkat(int place, const char *path, int flags) {
    REAL(int, unlinkat, int, const char *, int);
    CALL(REMOVE, below_at(place, path), real(place, path, flags));
}

int rmdir(const char *path) {
    REAL(int, rmdir, const char *);
    CALL(REMOVE, below(path), real(path));
}

int mkdir(const char *path, mode_t mode) {
    REAL(int, mkdir, const char *, mode_t);
    CALL(CREATE, below(path), real(path, mode));
}

int ftruncate64(int number, off64_t size) {
    REAL(int, ftruncate64, int, off64_t);
    CALL(TRUNCATE, below_number(number), real(number, size));
}

int truncate64(const char *path, off64_t size) {
    REAL(int, truncate64, const char *, off64_t);
    CALL(TRUNCATE, below(path), real(path, size));
}

int open64(const char *path, int flags, ...) {
    REAL(int, open64, const char *, int, ...);
    va_list rest;
    va_start(rest, flags);
    mode_t mode = va_arg(rest, mode_t);
    va_end(rest);
    CALL(CREATE, (flags & (O_CREAT | O_TRUNC)) && below(path), real(path, flags, mode));
}

int openat64(int place, const char *path, int flags, ...) {
    REAL(int, openat64, int, const char *, int, ...);
    va_list rest;
    va_start(rest, flags);
    mode_t mode = va_arg(rest, mode_t);
    va_end(rest);
    CALL(CREATE, (flags & (O_CREAT | O_TRUNC)) && below_at(place, path), real(place, path, flags, mode));
}
