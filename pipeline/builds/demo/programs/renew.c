// Renews what no two copies of one running guest may share: its random numbers, its clock, its boot id, its name.
//
//   renew TTY BOOT_ID_FILE
//
// It returns as soon as a process in the background waits for a line on the serial port TTY,
//
//   BOOT_ID NAME SECONDS SEED
//
// with the seconds since 1970 and the seed in hexadecimal; pipeline/vm/qemu/renewal.py writes it in each copy. When all
// is done, the process answers "renewed BOOT_ID", or "failed: WHAT: WHY", and ends.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define SEED 64  // bytes; the kernel wants 32

static int tty;

static void answer(const char *word, const char *what) {
  dprintf(tty, "%s%s\n", word, what);
}

static void check(int good, const char *what) {
  if (good) return;
  char text[256];
  snprintf(text, sizeof text, "%s: %s", what, strerror(errno));
  answer("failed: ", text);
  exit(1);
}

// Credited and mixed in at once: what is only written to /dev/urandom has no effect until the kernel's next reseeding.
static void add_randomness(const char *hex) {
  union {
    struct rand_pool_info info;
    unsigned char bytes[sizeof(struct rand_pool_info) + SEED];
  } pool = {.info = {.entropy_count = 8 * SEED, .buf_size = SEED}};
  errno = EINVAL;
  check(strlen(hex) == 2 * SEED, "the seed");
  for (int i = 0; i < SEED; i++) {
    unsigned byte = 0;
    check(sscanf(hex + 2 * i, "%2x", &byte) == 1, "the seed");
    pool.bytes[sizeof pool.info + i] = byte;
  }
  int device = open("/dev/urandom", O_RDWR | O_CLOEXEC);
  check(device >= 0, "/dev/urandom");
  check(ioctl(device, RNDADDENTROPY, &pool) == 0, "RNDADDENTROPY");
  check(ioctl(device, RNDRESEEDCRNG) == 0, "RNDRESEEDCRNG");
  close(device);
}

static void set_clock(double seconds) {
  struct timespec now = {.tv_sec = (time_t)seconds};
  now.tv_nsec = (long)((seconds - (double)now.tv_sec) * 1e9);
  check(clock_settime(CLOCK_REALTIME, &now) == 0, "the clock");
}

static void write_boot_id(const char *path, const char *boot_id) {
  FILE *file = fopen(path, "we");
  check(file != NULL, path);
  check(fprintf(file, "%s\n", boot_id) > 0 && fclose(file) == 0, path);
}

static void renew(const char *boot_id_file) {
  char line[512], boot_id[64], name[64], seed[2 * SEED + 1];
  double seconds;
  FILE *input = fdopen(dup(tty), "r");
  check(input && fgets(line, sizeof line, input), "reading");
  errno = EINVAL;
  check(sscanf(line, "%63s %63s %lf %128s", boot_id, name, &seconds, seed) == 4, "the line");
  add_randomness(seed);
  set_clock(seconds);
  check(sethostname(name, strlen(name)) == 0, "the name");
  write_boot_id(boot_id_file, boot_id);
  answer("renewed ", boot_id);
}

int main(int count, char **words) {
  if (count != 3) return fprintf(stderr, "usage: renew TTY BOOT_ID_FILE\n"), 2;
  tty = open(words[1], O_RDWR | O_NOCTTY | O_CLOEXEC);
  if (tty < 0) return perror(words[1]), 1;
  // No echo, and one wake-up for the whole line: emulated, one for each few bytes takes a tenth of a second
  struct termios quiet;
  if (tcgetattr(tty, &quiet)) return perror(words[1]), 1;
  cfmakeraw(&quiet);
  cfsetspeed(&quiet, B115200);
  quiet.c_lflag |= ICANON;
  quiet.c_cflag |= CLOCAL;
  if (tcsetattr(tty, TCSAFLUSH, &quiet)) return perror(words[1]), 1;
  if (daemon(0, 0)) return perror("daemon"), 1;
  renew(words[2]);
  return 0;
}
