// Renews what no two copies of one running guest may share: its random numbers, its clock, its boot id, its name.
//
//   renew TTY BOOT_ID_FILE
//
// It returns as soon as a process in the background waits for a line on the serial port TTY,
//
//   BOOT_ID NAME NANOSECONDS SEED
//
// with the time since 1970 and the seed in hexadecimal; pipeline/vm/qemu/renewal.py writes it in each copy. When all is
// done, the process answers "renewed BOOT_ID", or "failed: WHAT", and ends.
//
// In a copy that was just restored, nothing that an emulated CPU runs has been translated yet, which takes far longer
// than running it. So after the line little but system calls is needed: no stdio, no dynamic linking.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define SEED 32  // bytes; as many as the kernel's generator has

static int tty;
static char line[512];

static void answer(const char *word, const char *what) {
  char text[512];
  char *end = stpcpy(stpcpy(stpcpy(text, word), what), "\n");
  _exit(write(tty, text, (size_t)(end - text)) != end - text || *word == 'f');
}

static void check(int good, const char *what) {
  if (!good) answer("failed: ", what);
}

// The next word of the line, at `at`, ends with a blank or the end of the line, which becomes the end of the text.
static char *next(char **at) {
  char *word = *at;
  size_t length = strcspn(word, " \n");
  check(length > 0 && length < 256 && word[length], "the line");
  word[length] = 0;
  *at = word + length + 1;
  return word;
}

static unsigned digit(char hex) {
  if (hex >= '0' && hex <= '9') return (unsigned)(hex - '0');
  check(hex >= 'a' && hex <= 'f', "the seed");
  return (unsigned)(hex - 'a' + 10);
}

// Credited and mixed in at once: what is only written to /dev/urandom has no effect until the kernel's next reseeding.
static void add_randomness(const char *hex) {
  union {
    struct rand_pool_info info;
    unsigned char bytes[sizeof(struct rand_pool_info) + SEED];
  } pool = {.info = {.entropy_count = 8 * SEED, .buf_size = SEED}};
  check(strlen(hex) == 2 * SEED, "the seed");
  for (int i = 0; i < SEED; i++)
    pool.bytes[sizeof pool.info + i] = (unsigned char)(digit(hex[2 * i]) << 4 | digit(hex[2 * i + 1]));
  int device = open("/dev/urandom", O_RDWR | O_CLOEXEC);
  check(device >= 0, "/dev/urandom");
  check(ioctl(device, RNDADDENTROPY, &pool) == 0, "RNDADDENTROPY");
  check(ioctl(device, RNDRESEEDCRNG) == 0, "RNDRESEEDCRNG");
}

static void set_clock(const char *nanoseconds) {
  uint64_t since = 0;
  for (; *nanoseconds >= '0' && *nanoseconds <= '9'; nanoseconds++) since = 10 * since + (uint64_t)(*nanoseconds - '0');
  check(*nanoseconds == 0, "the time");
  struct timespec now = {.tv_sec = (time_t)(since / 1000000000), .tv_nsec = (long)(since % 1000000000)};
  check(clock_settime(CLOCK_REALTIME, &now) == 0, "the clock");
}

static void write_boot_id(const char *path, const char *boot_id) {
  char text[260];
  char *end = stpcpy(stpcpy(text, boot_id), "\n");
  int file = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  check(file >= 0 && write(file, text, (size_t)(end - text)) == end - text, path);
}

static void renew(const char *boot_id_file) {
  ssize_t length = read(tty, line, sizeof line - 1);
  check(length > 0, "reading");
  char *at = line, *boot_id = next(&at), *name = next(&at), *nanoseconds = next(&at), *seed = next(&at);
  add_randomness(seed);
  set_clock(nanoseconds);
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
