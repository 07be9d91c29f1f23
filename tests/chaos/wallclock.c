/* Preloaded into one node: its wall clock, and nothing else, is off by what a file says (nanoseconds, may change).

   libfaketime also moves the clocks that sleeps and timeouts are measured by, and breaks them. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile long long *shift;
static int (*kernel_gettime)(clockid_t, struct timespec *);

__attribute__((constructor)) static void map_shift(void)
{
    kernel_gettime = dlsym(RTLD_NEXT, "clock_gettime");
    const char *path = getenv("CHAOS_WALL_CLOCK");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0)
        return;
    void *mapped = mmap(0, sizeof *shift, PROT_READ, MAP_SHARED, fd, 0);
    if (mapped != MAP_FAILED)
        shift = mapped;
    close(fd);
}

int clock_gettime(clockid_t id, struct timespec *at)
{
    if (!kernel_gettime)
        kernel_gettime = dlsym(RTLD_NEXT, "clock_gettime");
    int failed = kernel_gettime(id, at);
    if (!failed && shift && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) {
        long long total = at->tv_nsec + *shift % 1000000000;
        at->tv_sec += *shift / 1000000000 + (total >= 1000000000) - (total < 0);
        at->tv_nsec = total < 0 ? total + 1000000000 : total % 1000000000;
    }
    return failed;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone)
{
    struct timespec exact;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &exact))
        return -1;
    at->tv_sec = exact.tv_sec;
    at->tv_usec = exact.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *to)
{
    struct timespec exact;
    if (clock_gettime(CLOCK_REALTIME, &exact))
        return -1;
    if (to)
        *to = exact.tv_sec;
    return exact.tv_sec;
}
