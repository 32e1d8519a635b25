/* The load generator: one thread, one epoll set, one core.
 *
 * It reads a description of the server and of the run from standard input (one "key value" per line, see
 * read_spec) and prints one JSON object. How it measures is told in README.md; in short:
 *
 *   - every server frame is found by walking the frame headers, and counts as a delivery only if its payload
 *     starts with the prefix given by "deliver"; nothing is extrapolated;
 *   - a connection that neither publishes nor is sampled for latency has SO_RCVLOWAT set, so the kernel wakes
 *     this process once per some frames instead of at each; a sweep over all connections at both
 *     ends of the measured window makes the count exact;
 *   - after the window, publishing stops and everything in flight is waited for: published x room must equal
 *     delivered ("lost" and "extra" say the difference), and the sampled connections check the order of
 *     every publisher's sequence numbers. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { HEAD = 1 << 20, CHUNK = 256 * 1024, EVENTS = 512, MAX_SCRIPT = 8, MAX_HEADERS = 8, MAX_SAMPLES = 4000000, MAX_PIDS = 8 };
enum { TAG = 34 }; /* "~P00007S0000000123T0123456789abcdef" without its filler, see make_text */
enum state { CONNECTING, UPGRADING, JOINING, OPEN, CLOSED };

struct action {
    bool is_send;
    char *text;
};

static struct {
    char *mode, *path, *deliver, *publish, *ping, *pong, *tokens_file;
    char *headers[MAX_HEADERS];
    struct action script[MAX_SCRIPT];
    int header_count, script_count;
    int port, connections, publishers, samples, room_size, room_base, window, concurrency, text_bytes, sources, wake;
    int other_port, outside_steps, missed; /* with two nodes: nodes.h */
    int pids[MAX_PIDS], pid_count;
    double warmup, seconds, rate;
} spec = {.deliver = "", .room_size = 1, .window = 1, .concurrency = 64, .text_bytes = 50, .sources = 1};

struct conn {
    int fd;
    uint8_t state;
    bool eager;         /* read at once, its payloads looked into */
    bool sampled;       /* every delivery's latency is kept, not only that of its own messages */
    int step;           /* where in the script */
    int publisher;      /* number among the publishers, or -1 */
    uint32_t stash_len; /* bytes of an incomplete frame or response */
    uint8_t *stash;
    uint32_t sent, own; /* messages published, own messages that came back */
    uint32_t *next_seq; /* per publisher, for eager connections */
    struct place *place; /* of a client that comes back: nodes.h */
};

static struct conn *conns;
static char **tokens;
static int *publisher_index;
static int epoll_fd;
static uint8_t *buffer; /* HEAD bytes for a stash, then CHUNK bytes for recv */
static int opened, joined, closed, publishing;
static uint64_t deliveries, bytes_in, published, disorder, pings_answered, gaps;
static uint32_t *samples;
static size_t sample_count;
static double last_progress;
static uint64_t receiver_reads, receiver_bytes;
static uint64_t read_at; /* when the bytes now walked through were read */

static void die(const char *format, ...) {
    va_list args;
    va_start(args, format);
    fputs("load: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    exit(1);
}

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static double now(void) { return (double)now_ns() / 1e9; }

static double own_cpu(void) {
    struct rusage r;
    getrusage(RUSAGE_SELF, &r);
    return (double)(r.ru_utime.tv_sec + r.ru_stime.tv_sec) + (double)(r.ru_utime.tv_usec + r.ru_stime.tv_usec) / 1e6;
}

/* CPU seconds of a process, all threads (proc(5), fields 14 and 15 of stat). */
static double cpu_of(int pid) {
    char name[64], text[1024];
    snprintf(name, sizeof name, "/proc/%d/stat", pid);
    FILE *file = pid ? fopen(name, "r") : NULL;
    if (!file) return 0;
    size_t n = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[n] = 0;
    char *after_name = strrchr(text, ')');
    unsigned long user = 0, system = 0;
    if (!after_name || sscanf(after_name + 2, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &system) != 2) return 0;
    return (double)(user + system) / (double)sysconf(_SC_CLK_TCK);
}

/* The server's; with several processes (nodes, the engine), of the first. */
static double server_cpu(void) { return cpu_of(spec.pids[0]); }

/* ---- the description of the run ---- */

static void read_spec(void) {
    static char line[1 << 16];
    while (fgets(line, sizeof line, stdin)) {
        line[strcspn(line, "\n")] = 0;
        if (!line[0]) break; /* an empty line ends the description; what follows, or EOF, ends "hold" */
        char *value = strchr(line, ' ');
        if (value) *value++ = 0;
        else value = "";
        char *k = line;
        if (!strcmp(k, "mode")) spec.mode = strdup(value);
        else if (!strcmp(k, "path")) spec.path = strdup(value);
        else if (!strcmp(k, "header") && spec.header_count < MAX_HEADERS) spec.headers[spec.header_count++] = strdup(value);
        else if ((!strcmp(k, "send") || !strcmp(k, "expect")) && spec.script_count < MAX_SCRIPT)
            spec.script[spec.script_count++] = (struct action){k[0] == 's', strdup(value)};
        else if (!strcmp(k, "deliver")) spec.deliver = strdup(value);
        else if (!strcmp(k, "publish")) spec.publish = strdup(value);
        else if (!strcmp(k, "ping")) spec.ping = strdup(value);
        else if (!strcmp(k, "pong")) spec.pong = strdup(value);
        else if (!strcmp(k, "tokens")) spec.tokens_file = strdup(value);
        else if (!strcmp(k, "port")) spec.port = atoi(value);
        else if (!strcmp(k, "connections")) spec.connections = atoi(value);
        else if (!strcmp(k, "publishers")) spec.publishers = atoi(value);
        else if (!strcmp(k, "samples")) spec.samples = atoi(value);
        else if (!strcmp(k, "room_size")) spec.room_size = atoi(value);
        else if (!strcmp(k, "room_base")) spec.room_base = atoi(value);
        else if (!strcmp(k, "window")) spec.window = atoi(value);
        else if (!strcmp(k, "concurrency")) spec.concurrency = atoi(value);
        else if (!strcmp(k, "text_bytes")) spec.text_bytes = atoi(value);
        else if (!strcmp(k, "sources")) spec.sources = atoi(value);
        else if (!strcmp(k, "wake")) spec.wake = atoi(value);
        else if (!strcmp(k, "pid") && spec.pid_count < MAX_PIDS) spec.pids[spec.pid_count++] = atoi(value);
        else if (!strcmp(k, "other_port")) spec.other_port = atoi(value);
        else if (!strcmp(k, "outside_steps")) spec.outside_steps = atoi(value);
        else if (!strcmp(k, "missed")) spec.missed = atoi(value);
        else if (!strcmp(k, "warmup")) spec.warmup = atof(value);
        else if (!strcmp(k, "seconds")) spec.seconds = atof(value);
        else if (!strcmp(k, "rate")) spec.rate = atof(value);
        else die("unknown key %s", k);
    }
    if (!spec.mode || !spec.path || spec.port <= 0 || spec.connections <= 0) die("mode, path, port and connections are needed");
    if (spec.text_bytes < TAG || spec.text_bytes > 4096) die("text_bytes must be %d to 4096", TAG);
}

/* With two nodes, who publishes is a client of the other node beside the `connections`, who only hear. */
static bool apart(void) { return spec.outside_steps > 0; }
static int total(void) { return spec.connections + (apart() ? spec.publishers : 0); }
static bool is_outside(int i) { return i >= spec.connections; }

static int room_of(int i) {
    int rooms = (spec.connections + spec.room_size - 1) / spec.room_size;
    return spec.room_base + (is_outside(i) ? (i - spec.connections) % rooms : i / spec.room_size);
}

static size_t since(char *out, size_t size, int i); /* nodes.h */

static void read_tokens(void) {
    if (!spec.tokens_file) return;
    FILE *file = fopen(spec.tokens_file, "r");
    if (!file) die("cannot read the tokens");
    static char line[8192];
    tokens = calloc((size_t)total(), sizeof *tokens);
    for (int i = 0; i < total(); i++) {
        if (!fgets(line, sizeof line, file)) die("too few tokens");
        line[strcspn(line, "\n")] = 0;
        tokens[i] = strdup(line);
    }
    fclose(file);
}

/* Copies a template, putting in $USER, $ROOM, $TOKEN and $TEXT of connection i. */
static size_t expand(char *out, size_t size, const char *template, int i, const char *text) {
    size_t n = 0;
    for (const char *p = template; *p && n + 1 < size;) {
        if (!strncmp(p, "$USER", 5)) n += (size_t)snprintf(out + n, size - n, "u%d", i), p += 5;
        else if (!strncmp(p, "$ROOM", 5)) n += (size_t)snprintf(out + n, size - n, "r%d", room_of(i)), p += 5;
        else if (!strncmp(p, "$SINCE", 6)) n += since(out + n, size - n, i), p += 6;
        else if (!strncmp(p, "$TOKEN", 6)) n += (size_t)snprintf(out + n, size - n, "%s", tokens ? tokens[i] : ""), p += 6;
        else if (text && !strncmp(p, "$TEXT", 5)) n += (size_t)snprintf(out + n, size - n, "%s", text), p += 5;
        else out[n++] = *p++;
    }
    if (n + 1 >= size) die("a template is too long");
    out[n] = 0;
    return n;
}

/* ---- sending ---- */

static void send_all(struct conn *c, const void *data, size_t n) {
    const uint8_t *p = data;
    for (int tries = 0; n;) {
        ssize_t k = send(c->fd, p, n, MSG_NOSIGNAL);
        if (k > 0) p += k, n -= (size_t)k;
        else if (errno == EAGAIN && tries++ < 2000) poll(&(struct pollfd){c->fd, POLLOUT, 0}, 1, 1);
        else die("sending failed: %s", strerror(errno));
    }
}

/* One masked client frame (RFC 6455 section 5.2); the key is fixed, which costs a server the same. */
static void send_frame(struct conn *c, int opcode, const char *text, size_t n) {
    static const uint8_t key[4] = {0x37, 0xfa, 0x21, 0x3d};
    uint8_t frame[8192 + 8];
    size_t at = 2;
    if (n > 8192) die("a client frame is too long");
    frame[0] = (uint8_t)(0x80 | opcode);
    if (n < 126) frame[1] = (uint8_t)(0x80 | n);
    else frame[1] = 0x80 | 126, frame[2] = (uint8_t)(n >> 8), frame[3] = (uint8_t)n, at = 4;
    memcpy(frame + at, key, 4);
    at += 4;
    for (size_t i = 0; i < n; i++) frame[at + i] = (uint8_t)text[i] ^ key[i & 3];
    send_all(c, frame, at + n);
}

static const char hex[] = "0123456789abcdef";

/* ~P<publisher>S<sequence>T<nanoseconds, hexadecimal> and filler up to text_bytes. */
static void make_text(char *out, int publisher, uint32_t seq, uint64_t stamp) {
    int n = snprintf(out, 32, "~P%05dS%09u", publisher, seq);
    out[n++] = 'T';
    for (int shift = 60; shift >= 0; shift -= 4) out[n++] = hex[(stamp >> shift) & 15];
    static const char filler[] = " the quick brown fox jumps over the lazy dog";
    for (int i = 0; n < spec.text_bytes; n++, i++) out[n] = filler[i % (int)(sizeof filler - 1)];
    out[n] = 0;
}

static void publish(struct conn *c, uint64_t stamp) {
    char text[4097], message[8193];
    make_text(text, c->publisher, c->sent++, stamp);
    size_t n = expand(message, sizeof message, spec.publish, (int)(c - conns), text);
    send_frame(c, 1, message, n);
    published++;
}

/* ---- receiving ---- */

static void step(struct conn *c) {
    char message[8193];
    int steps = is_outside((int)(c - conns)) ? spec.outside_steps : spec.script_count;
    for (; c->step < steps && spec.script[c->step].is_send; c->step++) {
        size_t n = expand(message, sizeof message, spec.script[c->step].text, (int)(c - conns), NULL);
        send_frame(c, 1, message, n);
    }
    if (c->step == steps) {
        c->state = OPEN;
        joined++;
    }
}

static uint64_t read_hex(const uint8_t *p) {
    uint64_t v = 0;
    for (int i = 0; i < 16; i++) v = v << 4 | (uint64_t)(p[i] <= '9' ? p[i] - '0' : p[i] - 'a' + 10);
    return v;
}

/* Where the tag of make_text is in a payload: mostly where it was in the one before. */
static const uint8_t *find_tag(const uint8_t *payload, size_t n) {
    static size_t before;
    if (before + TAG <= n && payload[before] == '~' && payload[before + 1] == 'P') return payload + before;
    const uint8_t *tag = memmem(payload, n, "~P", 2);
    if (!tag || (size_t)(payload + n - tag) < TAG) return NULL;
    before = (size_t)(tag - payload);
    return tag;
}

/* A delivery on a connection that is looked into: order, latency, and the publisher's next message. */
static void look_into(struct conn *c, const uint8_t *payload, size_t n) {
    const uint8_t *tag = find_tag(payload, n);
    if (!tag) return;
    int who = 0;
    uint32_t seq = 0;
    for (int i = 2; i < 7; i++) who = who * 10 + (tag[i] - '0');
    for (int i = 8; i < 17; i++) seq = seq * 10 + (uint32_t)(tag[i] - '0');
    if (who < 0 || who >= spec.publishers) return;
    if (c->next_seq) {
        if (seq != c->next_seq[who]) disorder++;
        c->next_seq[who] = seq + 1;
    }
    if ((c->sampled || who == c->publisher) && sample_count < MAX_SAMPLES) {
        uint64_t microseconds = (read_at - read_hex(tag + 18)) / 1000;
        samples[sample_count++] = microseconds > UINT32_MAX ? UINT32_MAX : (uint32_t)microseconds;
    }
    struct conn *from = apart() ? &conns[publisher_index[who]] : who == c->publisher ? c : NULL;
    if (from) {
        from->own++;
        if (publishing && spec.rate <= 0) publish(from, now_ns());
    }
}

static void took_place(struct conn *c, const uint8_t *payload, size_t n);   /* nodes.h */
static void heard_again(struct conn *c, const uint8_t *payload, size_t n);

static bool begins(const uint8_t *payload, size_t n, const char *text) {
    return n >= strlen(text) && !memcmp(payload, text, strlen(text));
}

static void on_frame(struct conn *c, int opcode, const uint8_t *payload, size_t n) {
    if (opcode == 9) {
        send_frame(c, 10, (const char *)payload, n);
        pings_answered++;
        return;
    }
    if (opcode == 8) {
        uint16_t code = n >= 2 ? (uint16_t)(payload[0] << 8 | payload[1]) : 0;
        if (publishing || c->state == JOINING) die("the server closed a connection: %u %.*s", code, n > 2 ? (int)(n - 2) : 0, payload + 2);
        return;
    }
    if (c->state == JOINING) {
        const char *expected = spec.script[c->step].text;
        if (memmem(payload, n, expected, strlen(expected))) {
            if (c->place) took_place(c, payload, n);
            c->step++, step(c);
        } else if (begins(payload, n, "{\"type\":\"error\"")) {
            die("the server refused a client: %.*s", (int)(n < 300 ? n : 300), payload);
        }
        return;
    }
    static size_t prefix;
    if (!prefix) prefix = strlen(spec.deliver);
    if (spec.ping && n == strlen(spec.ping) && !memcmp(payload, spec.ping, n)) {
        send_frame(c, 1, spec.pong, strlen(spec.pong));
        pings_answered++;
    } else if (n >= prefix && !memcmp(payload, spec.deliver, prefix)) {
        deliveries++;
        if (c->place) heard_again(c, payload, n);
        else if (c->eager) look_into(c, payload, n);
    } else if (n && payload[0] == '{') {
        if (begins(payload, n, "{\"type\":\"gap\"")) gaps++;
        if (begins(payload, n, "{\"type\":\"error\"")) die("the server refused a message: %.*s", (int)(n < 300 ? n : 300), payload);
    }
}

/* Walks the frames in [p, end); returns where the first incomplete one starts. */
static uint8_t *walk(struct conn *c, uint8_t *p, uint8_t *end) {
    while (end - p >= 2) {
        size_t n = p[1], head = 2;
        if (n == 126) {
            if (end - p < 4) break;
            n = (size_t)p[2] << 8 | p[3], head = 4;
        } else if (n == 127) {
            if (end - p < 10) break;
            n = (size_t)p[6] << 24 | (size_t)p[7] << 16 | (size_t)p[8] << 8 | p[9], head = 10;
        }
        if ((size_t)(end - p) < head + n) break;
        if ((p[0] & 0xf0) != 0x80 || p[1] & 0x80) die("an unexpected frame: %02x %02x", p[0], p[1]);
        on_frame(c, p[0] & 15, p + head, n);
        p += head + n;
    }
    return p;
}

static void lost(struct conn *c) {
    if (c->state != OPEN) die("a connection was refused or dropped while joining (after %d)", joined);
    if (publishing) die("the server dropped a connection");
    close(c->fd);
    c->state = CLOSED;
    closed++;
}

/* RFC 6455 section 1.3: the accept value of the sample key that every handshake here uses. */
static uint8_t *on_response(struct conn *c, uint8_t *p, uint8_t *end) {
    uint8_t *blank = memmem(p, (size_t)(end - p), "\r\n\r\n", 4);
    if (!blank) return p;
    if (memcmp(p, "HTTP/1.1 101", 12)) die("the upgrade was refused: %.*s", (int)strcspn((char *)p, "\r\n"), p);
    if (!memmem(p, (size_t)(blank - p), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", 28)) die("a wrong Sec-WebSocket-Accept");
    c->state = JOINING;
    step(c);
    return blank + 4;
}

/* Reads once; returns whether more may be waiting. */
static bool read_once(struct conn *c) {
    ssize_t k = recv(c->fd, buffer + HEAD, CHUNK, MSG_DONTWAIT);
    if (k < 0 && errno == EAGAIN) return false;
    if (k <= 0) {
        lost(c);
        return false;
    }
    bytes_in += (uint64_t)k;
    if (c->eager) read_at = now_ns();
    else receiver_reads++, receiver_bytes += (uint64_t)k;
    uint8_t *p = buffer + HEAD, *end = p + k;
    if (c->stash_len) {
        p -= c->stash_len;
        memcpy(p, c->stash, c->stash_len);
        c->stash_len = 0;
    }
    if (c->state == UPGRADING) p = on_response(c, p, end);
    if (c->state >= JOINING) p = walk(c, p, end);
    if (p < end) {
        size_t rest = (size_t)(end - p);
        if (rest > HEAD) die("a frame of more than a megabyte");
        if (!(c->stash = realloc(c->stash, rest))) die("out of memory");
        memcpy(c->stash, p, rest);
        c->stash_len = (uint32_t)rest;
    } else if (c->stash) {
        free(c->stash);
        c->stash = NULL;
    }
    return k == CHUNK;
}

static void read_all(struct conn *c) {
    while (c->state != CLOSED && c->state != CONNECTING && read_once(c)) {}
}

static bool returned; /* all are clients of the other node now: nodes.h */
static int port_of(int i) { return returned || is_outside(i) ? spec.other_port : spec.port; }

static void on_connected(struct conn *c) {
    char path[8192], request[16384], header[8192];
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error) die("connecting failed: %s", strerror(error));
    int i = (int)(c - conns);
    expand(path, sizeof path, spec.path, i, NULL);
    size_t n = (size_t)snprintf(request, sizeof request,
                                "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n",
                                path, port_of(i));
    for (int h = 0; h < spec.header_count; h++) {
        expand(header, sizeof header, spec.headers[h], i, NULL);
        n += (size_t)snprintf(request + n, sizeof request - n, "%s\r\n", header);
        if (n + 4 > sizeof request) die("the request is too long");
    }
    memcpy(request + n, "\r\n", 2);
    c->state = UPGRADING;
    send_all(c, request, n + 2);
}

static void open_connection(void) {
    int i = opened;
    struct conn *c = &conns[i];
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (c->fd < 0) die("no more sockets after %d: %s", opened, strerror(errno));
    int one = 1;
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (spec.sources > 1) { /* past the ephemeral ports of one address: 127.0.0.2, 127.0.0.3, ... */
        struct sockaddr_in from = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(0x7f000002u + (uint32_t)(opened % spec.sources))};
        setsockopt(c->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
        if (bind(c->fd, (struct sockaddr *)&from, sizeof from)) die("binding a loopback address: %s", strerror(errno));
    }
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port_of(i)), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (connect(c->fd, (struct sockaddr *)&to, sizeof to) && errno != EINPROGRESS) die("connecting: %s", strerror(errno));
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = c};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &event);
    c->state = CONNECTING;
    opened++;
}

/* One turn of the loop, waiting at most so many nanoseconds (epoll_wait knows only milliseconds). */
static void turn_ns(uint64_t timeout) {
    static struct epoll_event events[EVENTS];
    struct timespec wait = {(time_t)(timeout / 1000000000u), (long)(timeout % 1000000000u)};
    int n = (int)syscall(SYS_epoll_pwait2, epoll_fd, events, EVENTS, &wait, NULL, 0);
    if (n < 0 && errno == ENOSYS) n = epoll_wait(epoll_fd, events, EVENTS, (int)(timeout / 1000000));
    for (int i = 0; i < n; i++) {
        struct conn *c = events[i].data.ptr;
        if (c->state == CLOSED) continue;
        if (c->state == CONNECTING) {
            if (!(events[i].events & (EPOLLOUT | EPOLLERR | EPOLLHUP))) continue;
            on_connected(c);
        }
        if (events[i].events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) {
            read_all(c);
            if (events[i].events & EPOLLRDHUP) read_all(c);
        }
    }
}

static void turn(int milliseconds) { turn_ns((uint64_t)milliseconds * 1000000u); }

static void sweep(void) {
    for (int i = 0; i < opened; i++) read_all(&conns[i]);
}

/* Opens all connections, at most `concurrency` of them unfinished at a time. Returns the seconds it took. */
static double connect_all(void) {
    double start = now(), progress = start;
    int before = 0;
    while (joined < total()) {
        while (opened < total() && opened - joined < spec.concurrency) open_connection();
        turn(100);
        if (joined != before) before = joined, progress = now();
        else if (now() - progress > 10) die("joining stalled at %d of %d", joined, total());
    }
    double took = now() - start;
    for (int i = 0; i < opened; i++) { /* EPOLLOUT was for connecting only */
        struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP | EPOLLET, .data.ptr = &conns[i]};
        epoll_ctl(epoll_fd, EPOLL_CTL_MOD, conns[i].fd, &event);
    }
    return took;
}

/* Publishers are spread evenly over the order of joining, so that no server gains by its order of sending;
 * the connections sampled for latency lie between them. */
static void choose_roles(void) {
    publisher_index = calloc((size_t)spec.publishers + 1, sizeof *publisher_index);
    for (int k = 0; k < spec.publishers; k++) {
        int i = apart() ? spec.connections + k : (int)(((int64_t)2 * k + 1) * spec.connections / (2 * spec.publishers));
        conns[i].publisher = k;
        conns[i].eager = true;
        publisher_index[k] = i;
    }
    for (int k = 0; k < spec.samples; k++) {
        struct conn *c = &conns[(int64_t)k * spec.connections / spec.samples];
        c->eager = c->sampled = true;
    }
    for (int i = 0; apart() && i < spec.connections; i += spec.room_size) conns[i].eager = conns[i].sampled = true;
    for (int i = 0; i < spec.connections; i++)
        if (conns[i].eager && (spec.room_size > 1 || apart())) conns[i].next_seq = calloc((size_t)spec.publishers, sizeof(uint32_t));
}

/* Mere receivers wake this process not at each frame but once per five of the server's writes (as seen in the first
 * half of the warm-up), or per 36 deliveries if these are fewer bytes. More would save little here and cost the
 * server: its unread segments fall out of the processor's cache. `wake` says another number of deliveries. */
static void choose_wake_ups(void) {
    if (!deliveries || !receiver_reads) return;
    uint64_t each = bytes_in / deliveries, writes = 5 * receiver_bytes / receiver_reads, most = 36 * each;
    int bytes = (int)(spec.wake ? each * (uint64_t)spec.wake : writes < most ? writes : most);
    for (int i = 0; i < total() && spec.wake != 1; i++)
        if (!conns[i].eager) setsockopt(conns[i].fd, SOL_SOCKET, SO_RCVLOWAT, &bytes, sizeof bytes);
}

static void check_progress(void) {
    static uint64_t before;
    if (deliveries != before) before = deliveries, last_progress = now();
    else if (now() - last_progress > 5) die("no delivery for 5 seconds (%llu of %llu messages)", (unsigned long long)deliveries, (unsigned long long)published);
}

/* Runs until the moment given. With a rate, messages go out on a schedule that no answer delays, and carry the
 * moment at which they were due: a stalled server cannot hide its stall (no coordinated omission). */
static void run_until(double end, uint64_t *due, uint64_t gap, uint64_t *count) {
    for (uint64_t t; (t = now_ns()), (double)t / 1e9 < end;) {
        if (gap) {
            for (; *due <= t; *due += gap) publish(&conns[publisher_index[(*count)++ % (uint64_t)spec.publishers]], *due);
            uint64_t then = now_ns();
            turn_ns(*due > then ? *due - then : 0);
        } else {
            turn(20);
        }
        check_progress();
    }
}

static int by_value(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static double percentile(double q) {
    if (!sample_count) return 0;
    size_t i = (size_t)(q * (double)(sample_count - 1));
    return (double)samples[i] / 1000;
}

/* Lets what joining caused (such as news of who joined) come to rest. */
static void settle(void) {
    uint64_t before = bytes_in;
    for (double start = now(), quiet = start; now() - quiet < 0.3 && now() - start < 10;) {
        turn(20);
        if (bytes_in != before) before = bytes_in, quiet = now();
    }
}

static void run(void) {
    connect_all();
    settle();
    choose_roles();
    samples = malloc(MAX_SAMPLES * sizeof *samples);
    deliveries = bytes_in = receiver_reads = receiver_bytes = 0;
    publishing = 1;
    last_progress = now();
    uint64_t gap = spec.rate > 0 ? (uint64_t)(1e9 / spec.rate) : 0, due = now_ns(), count = 0;
    if (!gap)
        for (int w = 0; w < spec.window; w++)
            for (int k = 0; k < spec.publishers; k++) publish(&conns[publisher_index[k]], now_ns());
    run_until(now() + spec.warmup / 2, &due, gap, &count);
    choose_wake_ups();
    run_until(now() + spec.warmup / 2, &due, gap, &count);

    sweep();
    double start = now(), cpu = own_cpu(), server = server_cpu(), cpus[MAX_PIDS];
    for (int i = 0; i < spec.pid_count; i++) cpus[i] = cpu_of(spec.pids[i]);
    uint64_t first = deliveries, first_bytes = bytes_in, first_published = published;
    sample_count = 0;
    run_until(start + spec.seconds, &due, gap, &count);
    sweep();
    double took = now() - start;
    cpu = own_cpu() - cpu;
    server = server_cpu() - server;
    for (int i = 0; i < spec.pid_count; i++) cpus[i] = cpu_of(spec.pids[i]) - cpus[i];
    uint64_t counted = deliveries - first, bytes = bytes_in - first_bytes, sent = published - first_published;

    publishing = 0;
    uint64_t expected = published * (uint64_t)(spec.room_size < spec.connections ? spec.room_size : spec.connections);
    uint64_t before = deliveries;
    for (double quiet = now(); now() - quiet < 1.0 && deliveries < expected;) {
        turn(10);
        sweep();
        if (deliveries != before) before = deliveries, quiet = now();
    }
    for (double end = now() + 0.1; now() < end; sweep()) turn(10); /* would there be too many? */

    qsort(samples, sample_count, sizeof *samples, by_value);
    printf("{\"deliveries_per_s\": %.1f, \"messages_per_s\": %.1f, \"bytes_per_delivery\": %.1f, \"seconds\": %.3f, "
           "\"generator_cpu\": %.1f, \"server_cpu\": %.1f, \"published\": %llu, \"delivered\": %llu, \"lost\": %lld, "
           "\"extra\": %lld, \"disorder\": %llu, \"dropped_connections\": %d, \"samples\": %zu, \"p50_ms\": %.3f, "
           "\"p99_ms\": %.3f, \"p999_ms\": %.3f, \"max_ms\": %.3f, \"gaps\": %llu, \"cpus\": [",
           (double)counted / took, (double)sent / took, counted ? (double)bytes / (double)counted : 0, took,
           100 * cpu / took, 100 * server / took, (unsigned long long)published, (unsigned long long)deliveries,
           deliveries < expected ? (long long)(expected - deliveries) : 0, deliveries > expected ? (long long)(deliveries - expected) : 0,
           (unsigned long long)disorder, closed, sample_count, percentile(0.5), percentile(0.99), percentile(0.999), percentile(1), (unsigned long long)gaps);
    for (int i = 0; i < spec.pid_count; i++) printf("%s%.1f", i ? ", " : "", 100 * cpus[i] / took);
    printf("]}\n");
}

static void handshakes(void) {
    double cpu = own_cpu(), server = server_cpu(), took = connect_all();
    printf("{\"handshakes_per_s\": %.1f, \"connections\": %d, \"seconds\": %.3f, \"generator_cpu\": %.1f, \"server_cpu\": %.1f}\n",
           spec.connections / took, spec.connections, took, 100 * (own_cpu() - cpu) / took, 100 * (server_cpu() - server) / took);
}

/* Opens all connections, says so, and keeps them (answering pings) until standard input ends. */
static void hold(void) {
    double took = connect_all();
    printf("{\"ready\": %d, \"seconds\": %.3f}\n", joined, took);
    fflush(stdout);
    struct pollfd in = {STDIN_FILENO, POLLIN, 0};
    for (double end = now() + spec.seconds; now() < end;) {
        turn(50);
        char drop[64];
        if (poll(&in, 1, 0) > 0 && read(STDIN_FILENO, drop, sizeof drop) <= 0) break;
    }
    printf("{\"dropped_connections\": %d, \"pings_answered\": %llu}\n", closed, (unsigned long long)pings_answered);
}

#include "nodes.h"

/* Resets instead of leaving thousands of ports in TIME_WAIT. */
static void reset_all(void) {
    struct linger at_once = {1, 0};
    for (int i = 0; i < opened; i++) {
        if (conns[i].state == CLOSED) continue;
        setsockopt(conns[i].fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
        close(conns[i].fd);
    }
}

int main(void) {
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    signal(SIGPIPE, SIG_IGN);
    setvbuf(stdin, NULL, _IONBF, 0); /* what follows the description stays for poll in hold() */
    read_spec();
    read_tokens();
    conns = calloc((size_t)total(), sizeof *conns);
    buffer = malloc(HEAD + CHUNK);
    epoll_fd = epoll_create1(0);
    for (int i = 0; i < total(); i++) conns[i].publisher = -1;
    if (!strcmp(spec.mode, "run")) run();
    else if (!strcmp(spec.mode, "handshakes")) handshakes();
    else if (!strcmp(spec.mode, "hold")) hold();
    else if (!strcmp(spec.mode, "watch")) watch();
    else if (!strcmp(spec.mode, "return")) come_back();
    else die("unknown mode %s", spec.mode);
    fflush(stdout);
    reset_all();
    return 0;
}
