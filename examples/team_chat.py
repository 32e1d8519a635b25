"""A team chat: a room for all, a private room for each project with members from code, and a build server that posts.

Run it:  HUBBUB_API_KEYS=a-key-of-my-own-1234 hubbub serve --app examples.team_chat:app
Connect: ws://127.0.0.1:8000/ws?token=…   (POST /api/dev/login {"name": "alice"})
POST /projects {"key": "apollo", "owner": "alice", "people": ["bob"]}   and bob gets  {"type": "room_added", …}
Send     {"type": "join_room", "room_id": "project-apollo"}             carol gets  not_found: it is not hers to know of
POST /hooks/build/apollo {"build": 7, "commit": "c0ffee", "passed": false, "author": "alice"}
         and the room hears it from `build-bot`; alice is mentioned, so she is notified wherever she is.
         The same build again is said once: a webhook is delivered at least once, and may be repeated.
GET  /people/bob/rooms                                                  what is unread. All of it is there after a restart.
"""

from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, Field

from hubbub import ClientError, Hubbub

app = FastAPI(title="A team chat")
hub = Hubbub(app, dev=True)
hub.declare_room("team", "The team", topic="For everybody")
hub.declare_room("news", "News", kind="broadcast")  # only moderators, and the server, write here


class Project(BaseModel):
    key: Annotated[str, Field(pattern=r"^[a-z0-9-]{1,40}$")]
    owner: str
    people: list[str] = []


class Build(BaseModel):
    build: int
    commit: str
    passed: bool
    author: str


class RoomOfMine(BaseModel):
    room_id: str
    name: str
    unread: int
    mentions: int


async def backend(credentials: Annotated[HTTPAuthorizationCredentials, Depends(HTTPBearer())]) -> None:
    """Your own way of knowing a webhook's sender; here: the keys of the server API."""
    if credentials.credentials not in hub.settings.api_keys:
        raise HTTPException(403, "not a key of this server")


@app.post("/projects", status_code=201)
async def start_project(project: Project) -> str:
    """A private room of the project: its owner may invite, its people are in it from the start."""
    room = await hub.create_room(
        f"project-{project.key}",
        project.key.title(),
        owner=project.owner,
        visibility="private",
        members=project.people,
    )
    await hub.say("news", f"{project.owner} begins {project.key}", user_id="build-bot")
    return room.room_id


@app.post("/hooks/build/{key}", dependencies=[Depends(backend)])
async def built(key: str, build: Build) -> int:
    """What the build server calls. Returns the message's number in the room."""
    text = f"Build {build.build} of {build.commit} "
    text += "passed" if build.passed else f"failed: @[{build.author}], please look"
    try:
        return await hub.say(f"project-{key}", text, user_id="build-bot", client_id=f"build-{build.build}")
    except ClientError as error:
        raise HTTPException(404, "no such project") from error


@app.get("/people/{user_id}/rooms")
async def rooms_of(user_id: str) -> list[RoomOfMine]:
    rooms = await hub.rooms(user_id)
    return [
        RoomOfMine(room_id=room.room_id, name=room.name, unread=room.me.unread, mentions=room.me.mentions)
        for room in rooms
        if room.me
    ]
