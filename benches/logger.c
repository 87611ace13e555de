/* The handler of the flood: notes what it is told of, one line an event. */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(void)
{
    const char *action = getenv("ACTION"), *path = getenv("DEVPATH"), *log = getenv("BENCH_LOG");
    char line[256];
    if (!action || !path || !log || strlen(action) + strlen(path) > sizeof line - 3)
        return 1;
    strcat(strcat(strcat(strcpy(line, action), " "), path), "\n");
    int fd = open(log, O_WRONLY | O_APPEND);
    return fd < 0 || write(fd, line, strlen(line)) < 0;
}
