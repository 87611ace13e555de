/* A client of libudev: tells of each device that comes or goes. */
#include <udev.h>
#include <poll.h>
#include <stdio.h>

int main(void)
{
	struct udev *udev = udev_new();
	struct udev_monitor *monitor = udev_monitor_new_from_netlink(udev, "udev");
	struct pollfd poll_fd = { .events = POLLIN };

	if (!monitor || udev_monitor_filter_add_match_subsystem_devtype(monitor, "net", NULL) < 0 ||
	    udev_monitor_enable_receiving(monitor) < 0)
		return 1;
	poll_fd.fd = udev_monitor_get_fd(monitor);
	puts("listening");
	for (;;) {
		struct udev_device *device;

		fflush(stdout);
		if (poll(&poll_fd, 1, -1) < 0)
			return 1;
		while ((device = udev_monitor_receive_device(monitor))) {
			printf("%s %s\n", udev_device_get_action(device), udev_device_get_sysname(device));
			udev_device_unref(device);
		}
	}
}
