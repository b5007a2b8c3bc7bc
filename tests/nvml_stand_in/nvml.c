// A libnvidia-ml.so.1 without a GPU: the calls that the real pynvml makes for this project, over a state in a file that
// all processes share. Every call is appended to <state>.calls as "pid function device arguments -> result".
//
// The file named by NVML_STAND_IN holds lines "key value". Keys:
//   devices                       how many GPUs (UUIDs GPU-0…, GPU-1…)
//   <gpu>.<name>                  a number of one GPU, see `number` below and its uses
//   error.<function>              the result to return instead of doing it (3 not supported, 4 no permission, …)
//   after.<function>              … but only once the function was called that many times
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7 };
enum { TDP = 0xffffff01u, CLOCKS_SETTING = 0x2, MEMORY_CLOCK = 2, MOST_LINES = 256 };

typedef struct {
  char key[96];
  long long value;
} Line;

typedef struct {
  int lock;
  int count;
  int changed;
  Line lines[MOST_LINES];
} State;

static const char* state_path(void) {
  const char* path = getenv("NVML_STAND_IN");
  return path ? path : "/nonexistent";
}

static void side_path(char* out, size_t size, const char* suffix) { snprintf(out, size, "%s%s", state_path(), suffix); }

static void open_state(State* state) {
  char path[4096];
  side_path(path, sizeof path, ".lock");
  state->lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  flock(state->lock, LOCK_EX);
  state->count = state->changed = 0;
  FILE* file = fopen(state_path(), "re");
  if (!file) return;
  while (state->count < MOST_LINES &&
         fscanf(file, "%95s %lld", state->lines[state->count].key, &state->lines[state->count].value) == 2)
    ++state->count;
  fclose(file);
}

static void close_state(State* state) {
  if (state->changed) {
    char draft[4096];
    side_path(draft, sizeof draft, ".draft");
    FILE* file = fopen(draft, "we");
    for (int i = 0; i < state->count; ++i) fprintf(file, "%s %lld\n", state->lines[i].key, state->lines[i].value);
    fclose(file);
    rename(draft, state_path());
  }
  close(state->lock);
}

static Line* find(State* state, const char* key) {
  for (int i = 0; i < state->count; ++i)
    if (!strcmp(state->lines[i].key, key)) return &state->lines[i];
  return NULL;
}

static long long get(State* state, const char* key, long long fallback) {
  Line* line = find(state, key);
  return line ? line->value : fallback;
}

static void put(State* state, const char* key, long long value) {
  Line* line = find(state, key);
  if (!line) {
    line = &state->lines[state->count++];
    snprintf(line->key, sizeof line->key, "%s", key);
  }
  line->value = value;
  state->changed = 1;
}

static void* handle_of(long long device) { return (void*)(intptr_t)(device + 1); }
static long long device_of(void* handle) { return (long long)(intptr_t)handle - 1; }

static long long number(State* state, void* handle, const char* name, long long fallback) {
  char key[96];
  snprintf(key, sizeof key, "%lld.%s", device_of(handle), name);
  return get(state, key, fallback);
}

static void set_number(State* state, void* handle, const char* name, long long value) {
  char key[96];
  snprintf(key, sizeof key, "%lld.%s", device_of(handle), name);
  put(state, key, value);
}

static void record(const char* function, void* handle, unsigned a, unsigned b, int result) {
  char path[4096], text[256];
  side_path(path, sizeof path, ".calls");
  int file = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  int size = snprintf(text, sizeof text, "%d %s %lld %u %u -> %d\n", getpid(), function, device_of(handle), a, b, result);
  if (write(file, text, size) != size) abort();
  close(file);
}

// The error that a test ordered for this call, or SUCCESS.
static int ordered(State* state, const char* function) {
  char key[96];
  snprintf(key, sizeof key, "error.%s", function);
  int result = (int)get(state, key, SUCCESS);
  snprintf(key, sizeof key, "after.%s", function);
  Line* left = find(state, key);
  if (!left || result == SUCCESS) return result;
  if (left->value == 0) return result;
  put(state, key, left->value - 1);
  return SUCCESS;
}

// A call on a GPU: BODY runs with `state` open and may change `result`.
#define CALL(FUNCTION, HANDLE, A, B, BODY)              \
  State state;                                          \
  open_state(&state);                                   \
  int result = ordered(&state, FUNCTION);               \
  if (result == SUCCESS) { BODY; }                      \
  close_state(&state);                                  \
  record(FUNCTION, HANDLE, A, B, result);               \
  return result;

static long long sm_clock(State* state, void* handle) {
  long long highest = number(state, handle, "max_sm", 1980);
  long long clock = number(state, handle, "foreign_mhz", 0);
  if (!clock) clock = number(state, handle, "sm_lock", 0);
  if ((unsigned)clock == TDP) clock = number(state, handle, "base_sm", 1200);
  if (!clock || clock > highest) clock = highest;
  long long cap = number(state, handle, "power_cap_mhz", 0);
  return cap && cap < clock ? cap : clock;
}

static long long monotonic_ms(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000LL + now.tv_nsec / 1000000;
}

// What rises with time, in steps of 100 ms as on a Hopper: units a second, from the file.
static unsigned long long risen(State* state, void* handle, const char* rate, long long fallback) {
  return (unsigned long long)(monotonic_ms() / 100) * number(state, handle, rate, fallback) / 10;
}

int nvmlInitWithFlags(unsigned flags) { CALL("nvmlInitWithFlags", NULL, flags, 0, ) }
int nvmlShutdown(void) { CALL("nvmlShutdown", NULL, 0, 0, ) }
const char* nvmlErrorString(int result) {
  return result == 4 ? "Insufficient Permissions" : result == 3 ? "Not Supported" : result == 15 ? "GPU is lost" : "Error";
}

int nvmlSystemGetDriverVersion(char* text, unsigned size) {
  CALL("nvmlSystemGetDriverVersion", NULL, 0, 0, snprintf(text, size, "580.0"))
}
int nvmlDeviceGetCount_v2(unsigned* count) {
  CALL("nvmlDeviceGetCount", NULL, 0, 0, *count = (unsigned)get(&state, "devices", 1))
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void** handle) {
  CALL("nvmlDeviceGetHandleByIndex", handle_of(index), 0, 0, *handle = handle_of(index))
}
int nvmlDeviceGetUUID(void* handle, char* text, unsigned size) {
  CALL("nvmlDeviceGetUUID", handle, 0, 0, snprintf(text, size, "GPU-%lld", device_of(handle)))
}
int nvmlDeviceGetHandleByUUID(const char* uuid, void** handle) {
  long long device = strncmp(uuid, "GPU-", 4) ? -1 : atoll(uuid + 4);
  CALL("nvmlDeviceGetHandleByUUID", handle_of(device), 0, 0, {
    if (device < 0 || device >= get(&state, "devices", 1)) result = NOT_FOUND;
    *handle = handle_of(device);
  })
}
int nvmlDeviceGetName(void* handle, char* text, unsigned size) {
  CALL("nvmlDeviceGetName", handle, 0, 0, snprintf(text, size, "Stand-in"))
}

#define READ(FUNCTION, NAME, FALLBACK)                                                      \
  int FUNCTION(void* handle, unsigned* value) {                                             \
    CALL(#FUNCTION, handle, 0, 0, *value = (unsigned)number(&state, handle, NAME, FALLBACK)) \
  }
READ(nvmlDeviceGetMemoryBusWidth, "bus_bits", 6016)
READ(nvmlDeviceGetPersistenceMode, "persistence", 1)
READ(nvmlDeviceGetPowerManagementLimit, "power_limit_mw", 700000)
READ(nvmlDeviceGetPowerUsage, "power_mw", 300000)

int nvmlDeviceGetTemperature(void* handle, int sensor, unsigned* value) {
  CALL("nvmlDeviceGetTemperature", handle, (unsigned)sensor, 0, *value = (unsigned)number(&state, handle, "celsius", 50))
}
int nvmlDeviceGetMarginTemperature(void* handle, unsigned* versioned) {
  CALL("nvmlDeviceGetMarginTemperature", handle, 0, 0, versioned[1] = (unsigned)number(&state, handle, "margin", 37))
}
int nvmlDeviceGetTotalEnergyConsumption(void* handle, unsigned long long* value) {
  CALL("nvmlDeviceGetTotalEnergyConsumption", handle, 0, 0, *value = risen(&state, handle, "watts_mj", 300000))
}

static int pair(const char* function, void* handle, const char* name, long long fallback, unsigned* now, unsigned* later) {
  CALL(function, handle, 0, 0, *now = *later = (unsigned)number(&state, handle, name, fallback))
}
int nvmlDeviceGetEccMode(void* handle, unsigned* now, unsigned* later) {
  return pair("nvmlDeviceGetEccMode", handle, "ecc", 1, now, later);
}
int nvmlDeviceGetMigMode(void* handle, unsigned* now, unsigned* later) {
  return pair("nvmlDeviceGetMigMode", handle, "mig", 0, now, later);
}

int nvmlDeviceGetClockInfo(void* handle, int type, unsigned* mhz) {
  CALL("nvmlDeviceGetClockInfo", handle, (unsigned)type, 0, {
    long long memory = number(&state, handle, "memory_lock", 0);
    *mhz = (unsigned)(type == MEMORY_CLOCK ? memory ? memory : 3201 : sm_clock(&state, handle));
  })
}
int nvmlDeviceGetMaxClockInfo(void* handle, int type, unsigned* mhz) {
  CALL("nvmlDeviceGetMaxClockInfo", handle, (unsigned)type, 0,
       *mhz = type == MEMORY_CLOCK ? 3201 : (unsigned)number(&state, handle, "max_sm", 1980))
}
int nvmlDeviceGetApplicationsClock(void* handle, int type, unsigned* mhz) {
  CALL("nvmlDeviceGetApplicationsClock", handle, (unsigned)type, 0,
       *mhz = (unsigned)number(&state, handle, "application_sm", number(&state, handle, "max_sm", 1980)))
}

static int list(unsigned* count, unsigned* clocks, unsigned highest, unsigned step, unsigned length) {
  int fits = *count >= length && clocks;
  *count = length;
  for (unsigned i = 0; fits && i < length; ++i) clocks[i] = highest - i * step;
  return fits ? SUCCESS : INSUFFICIENT_SIZE;
}
int nvmlDeviceGetSupportedMemoryClocks(void* handle, unsigned* count, unsigned* clocks) {
  CALL("nvmlDeviceGetSupportedMemoryClocks", handle, 0, 0, result = list(count, clocks, 3201, 1000, 2))
}
int nvmlDeviceGetSupportedGraphicsClocks(void* handle, unsigned memory, unsigned* count, unsigned* clocks) {
  CALL("nvmlDeviceGetSupportedGraphicsClocks", handle, memory, 0,
       result = list(count, clocks, (unsigned)number(&state, handle, "max_sm", 1980), 15, 110))
}

int nvmlDeviceGetCurrentClocksEventReasons(void* handle, unsigned long long* mask) {
  CALL("nvmlDeviceGetCurrentClocksEventReasons", handle, 0, 0, {
    *mask = (unsigned long long)number(&state, handle, "reasons", 0);
    if (number(&state, handle, "sm_lock", 0) || number(&state, handle, "foreign_bit", 0)) *mask |= CLOCKS_SETTING;
  })
}

typedef struct {
  unsigned field, scope;
  long long timestamp, latency;
  unsigned type;
  int result;
  union {
    double real;
    unsigned small;
    unsigned long long large;
  } value;
} Field;

int nvmlDeviceGetFieldValues(void* handle, int count, Field* fields) {
  CALL("nvmlDeviceGetFieldValues", handle, (unsigned)count, 0, {
    for (int i = 0; i < count; ++i) {
      char name[32];
      snprintf(name, sizeof name, "field%u", fields[i].field);
      fields[i].result = SUCCESS;
      fields[i].type = fields[i].field == 186 ? 1 : 3;
      if (fields[i].field == 186)
        fields[i].value.small = (unsigned)number(&state, handle, "instant_mw", 350000);
      else if (number(&state, handle, name, 0) < 0)
        fields[i].result = NOT_SUPPORTED;
      else
        fields[i].value.large = risen(&state, handle, name, 0);
    }
  })
}

static int bad_lock(unsigned low, unsigned high) { return ((low >> 8) == 0xffffff) != ((high >> 8) == 0xffffff); }

int nvmlDeviceSetGpuLockedClocks(void* handle, unsigned low, unsigned high) {
  CALL("nvmlDeviceSetGpuLockedClocks", handle, low, high, {
    if (bad_lock(low, high)) result = INVALID_ARGUMENT;
    else set_number(&state, handle, "sm_lock", high);
  })
}
int nvmlDeviceResetGpuLockedClocks(void* handle) {
  CALL("nvmlDeviceResetGpuLockedClocks", handle, 0, 0, set_number(&state, handle, "sm_lock", 0))
}
int nvmlDeviceSetMemoryLockedClocks(void* handle, unsigned low, unsigned high) {
  CALL("nvmlDeviceSetMemoryLockedClocks", handle, low, high, set_number(&state, handle, "memory_lock", high))
}
int nvmlDeviceResetMemoryLockedClocks(void* handle) {
  CALL("nvmlDeviceResetMemoryLockedClocks", handle, 0, 0, set_number(&state, handle, "memory_lock", 0))
}
