/* A libcuda.so.1 in host memory for genuine pycuda: each thread has its stack of contexts, and what needs one fails
   without. The functions that pycuda links to besides are added by fake_libcuda.py, and succeed. */
#include <stdlib.h>
#include <string.h>

enum { INVALID_CONTEXT = 201, CUDA = 13000, CC_MAJOR = 75, CC_MINOR = 76 };
typedef int R;
typedef void *P;
typedef size_t S;

static __thread P stack[64];
static __thread int depth;

R cuInit(unsigned f) { return 0; }
R cuDriverGetVersion(int *v) { *v = CUDA; return 0; }
R cuDeviceGetCount(int *c) { *c = 1; return 0; }
R cuDeviceGet(int *d, int i) { *d = i; return i ? 101 : 0; }
R cuDeviceGetName(char *b, int l, int d) { strncpy(b, "fake GPU", l); return 0; }
R cuDeviceComputeCapability(int *a, int *b, int d) { *a = 8; *b = 7; return 0; }
R cuDeviceGetAttribute(int *v, int a, int d) { *v = a == CC_MAJOR ? 8 : a == CC_MINOR ? 7 : 1; return 0; }
R cuDevicePrimaryCtxRetain(P *c, int d) { *c = (P)0x1234; return 0; }
R cuDevicePrimaryCtxRelease_v2(int d) { return 0; }
R cuCtxPushCurrent_v2(P c) { stack[depth++] = c; return 0; }
R cuCtxPopCurrent_v2(P *c) { if (!depth) return INVALID_CONTEXT; *c = stack[--depth]; return 0; }
R cuCtxGetDevice(int *d) { if (!depth) return INVALID_CONTEXT; *d = 0; return 0; }
R cuStreamCreate(P *s, unsigned f) { if (!depth) return INVALID_CONTEXT; *s = (P)0x99; return 0; }
R cuEventCreate(P *e, unsigned f) { if (!depth) return INVALID_CONTEXT; *e = (P)0x98; return 0; }
R cuMemAlloc_v2(P *p, S b) { if (!depth) return INVALID_CONTEXT; *p = malloc(b); return 0; }
R cuMemFree_v2(P p) { if (!depth) return INVALID_CONTEXT; free(p); return 0; }
R cuMemHostAlloc(P *p, S b, unsigned f) { if (!depth) return INVALID_CONTEXT; *p = malloc(b); return 0; }
R cuMemFreeHost(P p) { free(p); return 0; }
R cuMemGetInfo_v2(S *a, S *b) { if (!depth) return INVALID_CONTEXT; *a = *b = 1 << 30; return 0; }
R cuGetErrorString(int e, const char **s) { *s = e == INVALID_CONTEXT ? "invalid device context" : "error"; return 0; }
R cuMemcpyHtoDAsync_v2(P d, P h, S b, P s) { if (!depth) return INVALID_CONTEXT; memcpy(d, h, b); return 0; }
R cuMemcpyDtoHAsync_v2(P h, P d, S b, P s) { if (!depth) return INVALID_CONTEXT; memcpy(h, d, b); return 0; }
