/* The upper limit: the least that a server on one thread can do. No authentication, no validation, no JSON, no
 * limits, no heartbeat; every client frame is trusted. What it does do: the handshake, finding and unmasking
 * frames, and one send per member and loop turn with all of the room's new messages (one send is what the kernel asks
 * of anybody; a batch is what a server gains by waiting for the end of its turn, which costs no time).
 *
 * GET /room/rN joins room N and answers "joined"; every text frame goes to all members. GET /echo echoes.
 * Usage: limit PORT */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { EVENTS = 256, CHUNK = 256 * 1024, ROOMS = 100000, ECHO = -1 };

struct buffer {
    uint8_t *data;
    size_t size, capacity;
};

struct conn {
    int fd, room; /* a room's number, or ECHO */
    bool open;
    struct buffer in, out; /* an incomplete request or frame; what the socket did not take */
};

struct room {
    struct conn **members;
    size_t count, capacity;
    struct buffer batch; /* frames of this turn */
};

static struct room rooms[ROOMS];
static int dirty[ROOMS], dirty_count, epoll_fd;
static uint8_t chunk[CHUNK];

static void append(struct buffer *b, const void *data, size_t n) {
    if (b->size + n > b->capacity) {
        b->capacity = (b->size + n) * 2;
        b->data = realloc(b->data, b->capacity);
    }
    memcpy(b->data + b->size, data, n);
    b->size += n;
}

static void release(struct buffer *b) {
    free(b->data);
    *b = (struct buffer){0};
}

static void append_frame(struct buffer *b, const uint8_t *payload, size_t n) {
    uint8_t head[10] = {0x81, (uint8_t)n};
    size_t size = 2;
    if (n >= 65536) {
        head[1] = 127, size = 10;
        for (int i = 0; i < 8; i++) head[2 + i] = (uint8_t)((uint64_t)n >> (56 - 8 * i));
    } else if (n >= 126) {
        head[1] = 126, head[2] = (uint8_t)(n >> 8), head[3] = (uint8_t)n, size = 4;
    }
    append(b, head, size);
    append(b, payload, n);
}

static void watch(struct conn *c, int operation, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = c};
    epoll_ctl(epoll_fd, operation, c->fd, &event);
}

static void transmit(struct conn *c, const uint8_t *data, size_t n) {
    if (!c->out.size) {
        ssize_t k = send(c->fd, data, n, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (k == (ssize_t)n) return;
        if (k < 0 && errno != EAGAIN) return; /* its end is read soon */
        if (k > 0) data += k, n -= (size_t)k;
        watch(c, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
    }
    append(&c->out, data, n);
}

static void drain(struct conn *c) {
    ssize_t k = send(c->fd, c->out.data, c->out.size, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (k < 0) return;
    c->out.size -= (size_t)k;
    memmove(c->out.data, c->out.data + k, c->out.size);
    if (c->out.size) return;
    release(&c->out);
    watch(c, EPOLL_CTL_MOD, EPOLLIN);
}

static void say(struct conn *c, const char *text) {
    struct buffer b = {0};
    append_frame(&b, (const uint8_t *)text, strlen(text));
    transmit(c, b.data, b.size);
    release(&b);
}

static void join(struct conn *c, int number) {
    struct room *r = &rooms[number];
    if (r->count == r->capacity) r->members = realloc(r->members, (r->capacity = r->capacity * 2 + 4) * sizeof *r->members);
    r->members[r->count++] = c;
    c->room = number;
}

static void end(struct conn *c) {
    if (c->open && c->room != ECHO) {
        struct room *r = &rooms[c->room];
        for (size_t i = 0; i < r->count; i++)
            if (r->members[i] == c) r->members[i] = r->members[--r->count];
    }
    close(c->fd);
    release(&c->in);
    release(&c->out);
    free(c);
}

/* ---- the handshake: SHA-1 (RFC 3174) and base64 of the key and the GUID of RFC 6455 ---- */

static uint32_t rotate(uint32_t x, int n) { return x << n | x >> (32 - n); }

static void sha1_block(uint32_t h[5], const uint8_t *p) {
    uint32_t w[80], a = h[0], b = h[1], c = h[2], d = h[3], e = h[4];
    for (int i = 0; i < 16; i++) w[i] = (uint32_t)p[4 * i] << 24 | (uint32_t)p[4 * i + 1] << 16 | (uint32_t)p[4 * i + 2] << 8 | p[4 * i + 3];
    for (int i = 16; i < 80; i++) w[i] = rotate(w[i - 3] ^ w[i - 8] ^ w[i - 14] ^ w[i - 16], 1);
    for (int i = 0; i < 80; i++) {
        uint32_t f = i < 20 ? ((b & c) | (~b & d)) + 0x5a827999 : i < 40 ? (b ^ c ^ d) + 0x6ed9eba1
                   : i < 60 ? ((b & c) | (b & d) | (c & d)) + 0x8f1bbcdc : (b ^ c ^ d) + 0xca62c1d6;
        uint32_t t = rotate(a, 5) + f + e + w[i];
        e = d, d = c, c = rotate(b, 30), b = a, a = t;
    }
    h[0] += a, h[1] += b, h[2] += c, h[3] += d, h[4] += e;
}

static void accept_value(const uint8_t *key, char out[29]) {
    uint8_t text[128] = {0}, digest[21] = {0};
    uint32_t h[5] = {0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0};
    memcpy(text, key, 24);
    memcpy(text + 24, "258EAFA5-E914-47DA-95CA-C5AB0DC85B11", 36);
    text[60] = 0x80;
    text[126] = (60 * 8) >> 8, text[127] = (60 * 8) & 255;
    sha1_block(h, text);
    sha1_block(h, text + 64);
    for (int i = 0; i < 20; i++) digest[i] = (uint8_t)(h[i / 4] >> (24 - 8 * (i % 4)));
    static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (int i = 0; i < 7; i++) {
        uint32_t v = (uint32_t)digest[3 * i] << 16 | (uint32_t)digest[3 * i + 1] << 8 | digest[3 * i + 2];
        for (int j = 0; j < 4; j++) out[4 * i + j] = letters[v >> (18 - 6 * j) & 63];
    }
    out[27] = '=', out[28] = 0;
}

/* Returns where the request ends, p if it is incomplete, NULL if it is none. */
static uint8_t *upgrade(struct conn *c, uint8_t *p, uint8_t *stop) {
    char answer[256], accepted[29];
    uint8_t *blank = memmem(p, (size_t)(stop - p), "\r\n\r\n", 4);
    if (!blank) return p;
    uint8_t *key = memmem(p, (size_t)(blank - p), "Sec-WebSocket-Key: ", 19);
    if (!key || blank - key < 43) return NULL;
    accept_value(key + 19, accepted);
    int n = snprintf(answer, sizeof answer,
                     "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n",
                     accepted);
    transmit(c, (uint8_t *)answer, (size_t)n);
    c->open = true;
    c->room = ECHO;
    if (!memcmp(p, "GET /room/r", 11)) join(c, atoi((char *)p + 11) % ROOMS), say(c, "joined");
    return blank + 4;
}

static void on_text(struct conn *c, uint8_t *payload, size_t n, struct buffer *echo) {
    if (c->room == ECHO) {
        append_frame(echo, payload, n);
        return;
    }
    struct room *r = &rooms[c->room];
    if (!r->batch.size) dirty[dirty_count++] = c->room;
    append_frame(&r->batch, payload, n);
}

static uint8_t *walk(struct conn *c, uint8_t *p, uint8_t *stop) {
    struct buffer echo = {0};
    while (stop - p >= 6) {
        size_t n = p[1] & 127, head = 6;
        if (n == 127) exit(3); /* the load generator sends none so long */
        if (n == 126) n = (size_t)p[2] << 8 | p[3], head = 8;
        if ((size_t)(stop - p) < head + n) break;
        uint8_t *key = p + head - 4, *payload = p + head;
        for (size_t i = 0; i < n; i++) payload[i] ^= key[i & 3];
        if ((p[0] & 15) == 1) on_text(c, payload, n, &echo);
        p += head + n;
    }
    if (echo.size) transmit(c, echo.data, echo.size), release(&echo);
    return p;
}

static void on_readable(struct conn *c) {
    size_t kept = c->in.size;
    if (kept) memcpy(chunk, c->in.data, kept);
    ssize_t k = recv(c->fd, chunk + kept, CHUNK - kept, MSG_DONTWAIT);
    if (k < 0 && errno == EAGAIN) return;
    if (k <= 0) {
        end(c);
        return;
    }
    uint8_t *p = chunk, *stop = chunk + kept + k;
    if (!c->open && !(p = upgrade(c, p, stop))) {
        end(c);
        return;
    }
    if (c->open) p = walk(c, p, stop);
    c->in.size = 0;
    if (p < stop) append(&c->in, p, (size_t)(stop - p));
    else if (c->in.data) release(&c->in);
}

static void flush_rooms(void) {
    for (int i = 0; i < dirty_count; i++) {
        struct room *r = &rooms[dirty[i]];
        for (size_t m = 0; m < r->count; m++) transmit(r->members[m], r->batch.data, r->batch.size);
        r->batch.size = 0;
    }
    dirty_count = 0;
}

static void accept_all(int listener) {
    for (int fd; (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0;) {
        int one = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        struct conn *c = calloc(1, sizeof *c);
        c->fd = fd;
        watch(c, EPOLL_CTL_ADD, EPOLLIN);
    }
}

int main(int argc, char **argv) {
    int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argc > 1 ? argv[1] : "0")), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    signal(SIGPIPE, SIG_IGN);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&at, sizeof at) || listen(listener, 4096)) {
        perror("limit");
        return 1;
    }
    epoll_fd = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL}, events[EVENTS];
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int n = epoll_wait(epoll_fd, events, EVENTS, -1);
        for (int i = 0; i < n; i++) {
            struct conn *c = events[i].data.ptr;
            if (!c) accept_all(listener);
            else if (events[i].events & EPOLLOUT) drain(c); /* level-triggered: reading comes with the next turn */
            else on_readable(c);
        }
        flush_rooms();
    }
}
