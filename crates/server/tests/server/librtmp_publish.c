/* Publishes an FLV file in real time through librtmp: librtmp_publish URL FILE */
#include <librtmp/rtmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static double now(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec + at.tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
    static unsigned char tag[1 << 20];
    RTMP *rtmp = RTMP_Alloc();
    FILE *file = argc == 3 ? fopen(argv[2], "rb") : NULL;
    RTMP_Init(rtmp);
    if (!file || !RTMP_SetupURL(rtmp, argv[1]))
        return 2;
    RTMP_EnableWrite(rtmp);
    if (!RTMP_Connect(rtmp, NULL) || !RTMP_ConnectStream(rtmp, 0))
        return 1;
    fseek(file, 13, SEEK_SET);
    for (double begin = now(); fread(tag, 1, 11, file) == 11;) {
        size_t size = (tag[1] << 16 | tag[2] << 8 | tag[3]) + 4;
        double due = begin + (tag[4] << 16 | tag[5] << 8 | tag[6] | tag[7] << 24) / 1e3 - now();
        if (size + 11 > sizeof tag || fread(tag + 11, 1, size, file) != size)
            return 2;
        if (due > 0) {
            struct timespec span = { (time_t)due, (long)((due - (time_t)due) * 1e9) };
            nanosleep(&span, NULL);
        }
        if (RTMP_Write(rtmp, (char *)tag, size + 11) <= 0)
            return 1;
    }
    RTMP_Close(rtmp);
    RTMP_Free(rtmp);
    return 0;
}
